"""Tables 1 and 2 from runs of accelerating_grokking.py, and Table 1 by the threshold."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
from scipy import stats

from lab.bench import plots
from lab.bench.files import first_step
from lab.bench.levels import GENERALISED as END
from lab.bench.statistics import Finished, Row, interval, markdown
from lab.reports import Request
from lab.reports._groups import Runs
from lab.reports._rows import NOT_RUN
from lab.reports._words import runs_in, save

SCRIPT = "accelerating_grokking"
COSTS = "costs.csv"  # beside the runs: what an update of each kind costs, measured in turns
BEGIN = 0.20  # test accuracy that begins the grokking phase, which END ends
LEVELS = (0.70, 0.75, 0.80, 0.82, 0.84, END)
LOSSES = {"CrossEntropy": "cross-entropy", "MSE": "squared error"}
# What tells the rows of Table 1 apart, and their values in the baseline.
METHOD = {
    "jr": 0.0,
    "num_projections": "1",
    "jr_fraction": 1.0,
    "grokfast": False,
    "adv_training": False,
    "optimiser": "adamw",
    "autograd": False,
}
NAMES = {
    "": "baseline",
    "jr=0.001": "GrokAlign",
    "jr=0.0001": "GrokAlign",
    "grokfast": "Grokfast",
    "adv_training": "noise on the inputs",
    "jr=0.001,num_projections=exact,jr_fraction=0.25": "GrokAlign, exact norm, ¼ of the points",
    "optimiser=muon": "Muon, without GrokAlign",
}
# The paper's speed-ups in steps, time and time of the grokking phase (1 / a where it prints ↑ a,
# slower), and its Table 2, test accuracy and extreme cosines.
NOTHING = ("–",) * 5
PAPER = {
    ("CrossEntropy", ""): ("–", "–", "–", "88.9", "−0.254 to 0.283"),
    ("CrossEntropy", "jr=0.001"): (
        "7.56 ± 0.82", "6.41 ± 0.69", "–", "91.8", "−0.509 to 0.478",
    ),
    ("CrossEntropy", "grokfast"): ("0.99", "0.97", "–", "–", "–"),
    ("CrossEntropy", "adv_training"): (
        "1.32 ± 0.18", "0.52", "–", "88.0", "−0.253 to 0.274",
    ),
    ("MSE", ""): ("–", "–", "–", "86.8", "−0.170 to 0.272"),
    ("MSE", "jr=0.0001"): (
        "1.69 ± 0.31", "1.46 ± 0.30", "1.77 ± 0.53", "88.2", "−0.638 to 0.709",
    ),
    ("MSE", "grokfast"): ("1.08 ± 0.17", "1.05 ± 0.23", "1.05 ± 0.27", "–", "–"),
    ("MSE", "adv_training"): ("1.23 ± 0.26", "0.52", "0.50", "–", "–"),
}  # fmt: skip
Seeds = dict[int, Finished]
Groups = dict[tuple[str, str], Seeds]


def report(request: Request) -> None:
    """Prints the tables, draws a loss's first seeds; words as `order=shuffled` choose other runs.

    Raises:
        UserError: if there is no finished run, or a word is no option.
    """
    for name, rows in tables(request).items():
        if rows:
            print(f"{name}\n\n{markdown(rows)}\n")
    groups = [(row, runs) for row, runs in groups_of(request).items() if runs]
    first = groups[0][0][0]  # the loss; both in one picture would lie over each other
    shown = {
        NAMES[method]: runs[min(runs)].metrics
        for (loss, method), runs in groups
        if loss == first and NAMES.get(method) in ("baseline", "GrokAlign")
    }
    if shown:
        panels = request.script(SCRIPT).PANELS
        came = {f"{name}_at": first_step(m, "test_accuracy", END) for name, m in shown.items()}
        drawing = plots.metric_panels(shown, panels, request.typed, events=came)
        plots.level(drawing.axes[0], END, "test accuracy")
        save(request, SCRIPT, ["table_1", *request.words], drawing)


def tables(request: Request) -> dict[str, list[Row]]:
    """The rows of Tables 1 and 2; of the paper's protocol those that are still to come as well.

    Raises:
        UserError: if there is no finished run with the options that the words say.
    """
    groups = groups_of(request)
    made = (speed_ups, phase_times, by_threshold, at_the_stop)
    return {table.__name__: table(groups) for table in made}


def groups_of(request: Request) -> Groups:
    """The runs of each loss and method, the paper's rows first."""
    groups: Groups = {} if request.words else {row: {} for row in PAPER}
    for runs in runs_in(request, SCRIPT, "loss_fn", *METHOD):
        config = runs[0].config
        groups[config["loss_fn"], method_of(config)] = {run.config["seed"]: run for run in runs}
    order = [*PAPER, *groups]
    return {row: groups[row] for row in sorted(groups, key=lambda r: (r[0], order.index(r)))}


def method_of(config: Mapping[str, Any]) -> str:
    """What tells a run's row of Table 1 from the baseline, by its options: `jr=0.001`."""
    differing = {key: config[key] for key, default in METHOD.items() if config[key] != default}
    return ",".join(k if v is True else f"{k}={v}" for k, v in differing.items())


def speed_ups(groups: Groups) -> list[Row]:
    """Table 1: against the baseline of the same seed, above 1 where the method is faster."""
    rows = []
    for (loss, method), runs in groups.items():
        steps, baseline = of(runs).first("test_accuracy", END), groups.get((loss, ""), {})
        row = {**begun(loss, method), "arrived": f"{len(steps.came)} of {steps.n}" if runs else "–"}
        row["steps"] = steps.interval()
        for what, printed in zip(
            ("steps", "time"), PAPER.get((loss, method), NOTHING), strict=False
        ):
            row[f"speed-up in {what}"] = speed_up(baseline, runs, what) if method else "–"
            row[f"paper, {what}"] = printed
        rows.append(row)
    return rows


def phase_times(groups: Groups) -> list[Row]:
    """Table 1's last column: the same from a test accuracy of 0.20 on, for the squared error."""
    return [
        {
            **begun(loss, method),
            "speed-up in time of the phase": speed_up(groups.get((loss, ""), {}), runs, "phase"),
            "paper": PAPER.get((loss, method), NOTHING)[2],
        }
        for (loss, method), runs in groups.items()
        if method and loss == "MSE"
    ]


def by_threshold(groups: Groups) -> list[Row]:
    """The speed-up in steps by the test accuracy that is to be passed; the baseline's steps."""
    rows = []
    for (loss, method), runs in ((row, runs) for row, runs in groups.items() if runs):
        row = begun(loss, method)
        for level in LEVELS:
            steps, baseline = of(runs).first("test_accuracy", level), groups.get((loss, ""), {})
            row[f"{level:.2f}"] = (
                speed_up(baseline, runs, "steps", level) if method else steps.interval()
            )
        rows.append(row)
    return rows


def at_the_stop(groups: Groups) -> list[Row]:
    """Table 2, and the Jacobian: at the end of the runs, ranges over the seeds."""
    rows = []
    for (loss, method), runs in groups.items():
        printed, ended = PAPER.get((loss, method), NOTHING), of(runs)
        norms = [getattr(ended, when)("jacobian_norm").span(",.4g") for when in ("start", "end")]
        cosines = [ended.result(f"{which}_row_cosine") for which in ("smallest", "largest")]
        rows.append(
            begun(loss, method)
            | {
                "test accuracy, %": (ended.end("test_accuracy") * 100).interval(".1f"),
                "paper, accuracy": printed[3],
                "‖J‖_F, start → end": " → ".join(norms) if runs else NOT_RUN,
                "centroid alignment": ended.end("alignment").span(".3f"),
                "cosines of rows and point": cosines[0].together(cosines[1]).span(".2f"),
                "paper, cosines": printed[4],
            }
        )
    return rows


def begun(loss: str, method: str) -> Row:
    """The cells that say which runs a row is of."""
    return {"loss": LOSSES[loss], "method": NAMES.get(method, method)}


def of(runs: Seeds) -> Runs:
    """In the order of their seeds."""
    return Runs(run for _, run in sorted(runs.items()))


def speed_up(baseline: Seeds, runs: Seeds, what: str, level: float = END) -> str:
    """How many times sooner than the baseline of the same seed: geometric mean, 95 % interval.

    A run that never came to the level took longer than it lasted, which bounds its ratio on one
    side. Where there is such a run, the median of the ratios, as far as it is known, and its
    interval by order statistics (from six pairs on); – where there is no bound.
    """
    least, most = [], []
    for seed in sorted(baseline.keys() & runs.keys()):
        pair = baseline[seed], runs[seed]
        slow, fast = (1.0, 1.0) if what == "steps" else paces(*pair)
        (slow_steps, slow_came), (fast_steps, fast_came) = (taken(r, what, level) for r in pair)
        ratio = slow * slow_steps / (fast * fast_steps)
        least.append(ratio if fast_came else 0.0)
        most.append(ratio if slow_came else math.inf)
    both = [low == high for low, high in zip(least, most, strict=True)]
    if all(both):
        return interval(least, ".2f", ratio=True) if both else NOT_RUN
    bounds = [numpy.median(least), numpy.median(most)]
    for sides, which in ((least, "low"), (most, "high")):
        bounds.append(getattr(stats.quantile_test(sides).confidence_interval(), which))
    low, high, below, above = (f"{bound:.2f}" if 0 < bound < math.inf else "–" for bound in bounds)
    one_sided = f"at most {high}" if low == "–" else f"at least {low}"
    median = low if low == high else one_sided if "–" in (low, high) else f"{low} to {high}"
    return f"{median} [{below}, {above}] ({sum(both)} of {len(both)})"


def taken(run: Finished, what: str, level: float) -> tuple[float, bool]:
    """Updates, or those of the phase, until a test accuracy above a level; whether it came."""
    end = first_step(run.metrics, "test_accuracy", level)
    steps = run.metrics["step"][-1] if end is None else end
    if what == "phase":
        begin = first_step(run.metrics, "test_accuracy", BEGIN)
        steps -= steps if begin is None else begin  # one that never began is 1 at least
    return max(steps, 1), end is not None


def paces(*runs: Finished) -> list[float]:
    """Milliseconds of an update of each: as measured together, else as the runs recorded them."""
    kinds = [(c["dtype"], c["loss_fn"], method_of(c)) for c in (run.config for run in runs)]
    measured = costs_in(runs[0].folder.parent / COSTS)
    if all(kind in measured for kind in kinds):
        return [measured[kind] for kind in kinds]
    return [1000 * run.seconds_per_step() for run in runs]


def costs_in(path: Path) -> dict[tuple[str, ...], float]:
    """What benchmarks/costs_of_table_1.py measured, by precision, loss and method."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {(r["dtype"], r["loss_fn"], r["method"]): float(r["milliseconds"]) for r in rows}
