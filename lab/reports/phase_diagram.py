"""Steps to memorise and to grok over alpha and weight decay, from order_parameters's runs.

Of finished runs that differ in `alpha`, `weight_decay` and `seed` alone; words such as `p=59`
choose others. And whether an order parameter tells runs that grokked from those that memorised.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lab.bench import plots
from lab.bench.statistics import Finished, Row, markdown
from lab.reports import Request
from lab.reports._groups import Runs
from lab.reports._values import Values
from lab.reports._words import runs_in, save

SCRIPT = "order_parameters"
TITLES = {
    "memorised_at": "steps to memorise",
    "grokked_at": "steps to grok",
    "delay": "delay, from memorising to grokking",
}
MEMORISED_ONLY = 0.1  # test accuracy at the end up to which a run has not begun to grok
NOT_ORDERS = ("step", "loss", "test_loss", "train_accuracy", "test_accuracy")
Cells = dict[tuple[float, float], Runs]


def report(request: Request) -> None:
    """Draws the heat maps, and prints the steps of every seed.

    Raises:
        UserError: if there is no finished run, or a word is no option.
    """
    for name, rows in tables(request).items():
        print(f"{name}\n\n{markdown(rows)}\n")
    drawing = figure(cells_of(request), request.typed)
    save(request, SCRIPT, ["phase_diagram", *request.words], drawing)


def tables(request: Request) -> dict[str, list[Row]]:
    """Steps of each event, a row a weight decay and a column an alpha; the order parameters.

    Raises:
        UserError: if there is no finished run with the options that the words say.
    """
    cells = cells_of(request)
    found = {event: steps_of(cells, event) for event in TITLES}
    return {**found, "order_parameters": order_parameters(cells)}


def cells_of(request: Request) -> Cells:
    """The runs by their alpha and weight decay, in ascending order."""
    groups = map(Runs, runs_in(request, SCRIPT, "alpha", "weight_decay"))
    return {(runs.option("alpha"), runs.option("weight_decay")): runs for runs in groups}


def times_of(runs: Runs, event: str) -> Values:
    """The steps of an event, or the delay between both; None for what never came."""
    if event == "delay":
        return runs.result("grokked_at") - runs.result("memorised_at")
    return runs.result(event)


def axes_of(cells: Cells) -> tuple[list[float], list[float]]:
    """All alphas, and all weight decays."""
    return sorted({alpha for alpha, _ in cells}), sorted({decay for _, decay in cells})


def steps_of(cells: Cells, event: str) -> list[Row]:
    """The steps of all seeds, – where it never came."""
    alphas, decays = axes_of(cells)
    return [
        {"weight decay": f"{decay:g}"}
        | {
            f"alpha {alpha:g}": times_of(cells.get((alpha, decay), Runs([])), event).each(never="–")
            for alpha in alphas
        }
        for decay in decays
    ]


def order_parameters(cells: Cells) -> list[Row]:
    """How many runs grokked and memorised only, and the order parameters at the end of them."""
    every = [run for runs in cells.values() for run in runs.runs]

    def ended(wanted: Callable[[Finished], bool]) -> Runs:
        return Runs(run for run in every if wanted(run))

    groups = {
        "grokked": ended(lambda run: run.results["grokked_at"] is not None),
        "memorised only": ended(lambda run: run.metrics["test_accuracy"][-1] <= MEMORISED_ONLY),
    }
    counts = {group: str(runs.n) for group, runs in groups.items()}
    rows: list[Row] = [{"order parameter": "runs", **counts, "apart": "–"}]
    for column in (name for name in every[0].metrics if name not in NOT_ORDERS):
        values = [runs.end(column) for runs in groups.values()]
        spans = (each.span(".3g") if each.n else "–" for each in values)
        known = [numpy.array(each.came) for each in values]
        rows.append(
            {"order parameter": column, **dict(zip(groups, spans, strict=True))}
            | {"apart": apart(*known)}
        )
    return rows


def apart(one: numpy.ndarray, other: numpy.ndarray) -> str:
    """Whether the ranges of two groups of numbers are apart."""
    if not (one.size and other.size):
        return "–"
    return "yes" if one.min() > other.max() or one.max() < other.min() else "no"


def figure(cells: Cells, typed: str) -> Figure:
    """Heat maps of means over seeds, with how many of them got there where not all did."""
    alphas, decays = axes_of(cells)
    drawing, axes = plots.panels(3, typed)
    for panel, (event, title) in zip(axes, TITLES.items(), strict=True):
        means = numpy.full((len(decays), len(alphas)), numpy.nan)
        texts = numpy.full(means.shape, "no run", dtype=object)
        for row, column in numpy.ndindex(means.shape):
            times = times_of(cells.get((alphas[column], decays[row]), Runs([])), event)
            if times.came:
                means[row, column] = statistics.fmean(times.came)
                some = f"\n{len(times.came)} of {times.n}" if len(times.came) < times.n else ""
                texts[row, column] = f"{means[row, column]:,.0f}{some}"
            elif times.n:
                texts[row, column] = "never"
        heat_map(panel, means, texts, x=alphas, y=decays)
        panel.set(xlabel="alpha", ylabel="weight decay", title=title)
    return drawing


def heat_map(axes: Axes, values: Any, texts: Any, x: Sequence[Any], y: Sequence[Any]) -> None:
    """A table as coloured cells on a logarithmic scale, each with its text; nan is grey.

    Args:
        axes: where to draw.
        values: (len(y), len(x)), or nan, the first row on top; below 1 drawn as 1.
        texts: of the same shape.
        x, y: what the columns and the rows are.
    """
    shown = numpy.ma.masked_invalid(values).clip(min=1)
    axes.imshow(shown, norm=LogNorm(), cmap=plots.SEQUENTIAL, aspect="auto")
    axes.set_facecolor("#dddddd")
    for (row, column), text in numpy.ndenumerate(texts):
        box = {"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 2}
        axes.text(column, row, text, ha="center", va="center", bbox=box)
    axes.set_xticks(range(len(x)), [f"{each:g}" for each in x])
    axes.set_yticks(range(len(y)), [f"{each:g}" for each in y])
    axes.grid(False)
