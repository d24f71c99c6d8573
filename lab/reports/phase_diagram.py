"""Steps to memorise and to grok over alpha and weight decay, from order_parameters's runs.

Of finished runs that differ in `alpha`, `weight_decay` and `seed` alone; words such as `p=59`
choose others.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy
from matplotlib.figure import Figure

from lab.bench import plots
from lab.bench.errors import UserError
from lab.bench.files import first_step, write_figure
from lab.bench.statistics import Finished, Row, finished_runs, markdown
from lab.reports import Request
from lab.reports._words import options_in

SCRIPT = "order_parameters"
TITLES = {
    "memorised_at": "steps to memorise",
    "grokked_at": "steps to grok",
    "delay": "delay, from memorising to grokking",
}
Times = dict[str, int | None]
Cells = dict[tuple[float, float], list[Times]]


def report(request: Request) -> None:
    """Draws the heat maps, and prints the steps of every seed.

    Raises:
        UserError: if there is no finished run, or a word is no option.
    """
    script = request.script(SCRIPT)
    folder = request.out_dir / SCRIPT
    given = options_in(request, script.Options)
    groups = finished_runs(folder, script.Options, ("alpha", "weight_decay"), **given)
    cells = {
        place: [times_of(run, script.EVENTS) for _, run in sorted(runs.items())]
        for place, runs in sorted(groups.items())
    }
    if not cells:
        raise UserError(f"there is no finished run with these options in {folder}")
    print(markdown([row_of(*place, times) for place, times in cells.items()]), "\n")
    path = folder / f"phase_diagram{''.join(f',{word}' for word in request.words)}.png"
    write_figure(path, figure(cells, request.typed))
    print(path)


def times_of(run: Finished, events: dict[str, tuple[str, float]]) -> Times:
    """The steps of both events, None for one that never came, and the delay between them."""
    times: dict[str, Any] = {
        name: first_step(run.metrics, *passed) for name, passed in events.items()
    }
    known = None not in times.values()
    return {**times, "delay": times["grokked_at"] - times["memorised_at"] if known else None}


def row_of(alpha: float, decay: float, times: list[Times]) -> Row:
    """A cell's line of the table, its seeds in their order."""
    row = {"alpha": f"{alpha:g}", "weight decay": f"{decay:g}"}
    for event, title in TITLES.items():
        steps = [each[event] for each in times]
        row[title] = ", ".join("–" if step is None else f"{step:,}" for step in steps)
    return row


def figure(cells: Cells, typed: str) -> Figure:
    """Heat maps of means over seeds, with how many of them got there where not all did."""
    alphas, decays = (sorted({place[i] for place in cells}) for i in (0, 1))
    drawing, axes = plots.panels(3, typed)
    for panel, (event, title) in zip(axes, TITLES.items(), strict=True):
        means = numpy.full((len(decays), len(alphas)), numpy.nan)
        texts = numpy.full(means.shape, "no run", dtype=object)
        for row, column in numpy.ndindex(means.shape):
            times = cells.get((alphas[column], decays[row]), [])
            steps = [step for each in times if (step := each[event]) is not None]
            if steps:
                means[row, column] = statistics.fmean(steps)
                some = f"\n{len(steps)} of {len(times)}" if len(steps) < len(times) else ""
                texts[row, column] = f"{means[row, column]:,.0f}{some}"
            elif times:
                texts[row, column] = "never"
        plots.heat_map(panel, means, texts, x=alphas, y=decays)
        panel.set(xlabel="alpha", ylabel="weight decay", title=title)
    return drawing
