"""Tables 1 and 2 from runs of accelerating_grokking.py, and Table 1 by the threshold."""

from __future__ import annotations

import csv

from lab.bench.errors import UserError
from lab.bench.files import first_step
from lab.bench.statistics import Finished, Row, finished_runs, interval, markdown
from lab.reports import Request
from lab.reports._words import options_in

SCRIPT = "accelerating_grokking"
BEGIN, END = 0.20, 0.85  # test accuracies that begin and end the grokking phase
LEVELS = (0.70, 0.75, 0.80, 0.82, 0.84, 0.85)
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
# The paper's Table 1 as printed, for steps, time and time of the grokking phase (↓ faster, ↑
# slower), and its Table 2, test accuracy and extreme cosines.
PAPER = {
    ("CrossEntropy", "baseline"): ("", "", "", "88.9 %", "-0.254 / 0.283"),
    ("CrossEntropy", "jr=0.001"): (
        "↓ 7.56 ± 0.82", "↓ 6.41 ± 0.69", "", "91.8 %", "-0.509 / 0.478",
    ),
    ("CrossEntropy", "grokfast"): ("↑ 1.01 ± 0.04", "↑ 1.03 ± 0.04", "", "", ""),
    ("CrossEntropy", "adv_training"): (
        "↓ 1.32 ± 0.18", "↑ 1.92 ± 0.29", "", "88.0 %", "-0.253 / 0.274",
    ),
    ("MSE", "baseline"): ("", "", "", "86.8 %", "-0.170 / 0.272"),
    ("MSE", "jr=0.0001"): (
        "↓ 1.69 ± 0.31", "↓ 1.46 ± 0.30", "↓ 1.77 ± 0.53", "88.2 %", "-0.638 / 0.709",
    ),
    ("MSE", "grokfast"): ("↓ 1.08 ± 0.17", "↓ 1.05 ± 0.23", "↓ 1.05 ± 0.27", "", ""),
    ("MSE", "adv_training"): ("↓ 1.23 ± 0.26", "↑ 1.92 ± 0.29", "↑ 2.02 ± 0.37", "", ""),
}  # fmt: skip
Groups = dict[tuple[str, str], dict[int, Finished]]


def report(request: Request) -> None:
    """Writes and prints the tables; words such as `order=shuffled` choose other runs.

    Raises:
        UserError: if there is no finished run, or a word is no option.
    """
    options = request.script(SCRIPT).Options
    folder = request.out_dir / SCRIPT
    fixed = options_in(request, options)
    found = finished_runs(folder, options, ("loss_fn", *METHOD), **fixed)
    groups: Groups = {}
    for (loss, *values), runs in found.items():
        pairs = zip(METHOD.items(), values, strict=True)
        differing = {key: value for (key, default), value in pairs if value != default}
        name = ",".join(k if v is True else f"{k}={v}" for k, v in differing.items())
        groups[loss, name or "baseline"] = runs
    if not groups:
        raise UserError(f"there is no finished run with these options in {folder}")
    groups = dict(sorted(groups.items(), key=lambda g: (g[0][0], g[0][1] != "baseline")))
    tables = {"table_1": speed_ups(groups), "table_1_by_threshold": by_threshold(groups)}
    tables["table_2"] = accuracies_and_cosines(groups)
    suffix = "".join(f",{word}" for word in request.words)
    for name, rows in tables.items():
        path = folder / f"{name}{suffix}.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        print(f"{name}\n\n{markdown(rows)}\n\n{path}\n")


def steps_to(run: Finished, level: float) -> int | None:
    """The first measured step with a test accuracy above `level`."""
    return first_step(run.metrics, "test_accuracy", level)


def quantities(run: Finished) -> tuple[float, float, float] | None:
    """Steps, seconds, and seconds of the grokking phase; None for a run that did not arrive."""
    begin, end = steps_to(run, BEGIN), steps_to(run, END)
    if begin is None or end is None:
        return None
    return end, end * run.seconds_per_step(), (end - begin) * run.seconds_per_step()


def speed_ups(groups: Groups) -> list[Row]:
    """Table 1: against the baseline of the same seed, above 1 where the method is faster."""
    rows = []
    for (loss, name), runs in groups.items():
        printed = PAPER.get((loss, name), ("",) * 5)
        taken = {seed: q for seed, run in runs.items() if (q := quantities(run))}
        row = {"loss": loss, "method": name, "arrived": f"{len(taken)} of {len(runs)}"}
        row["steps, mean [95 %]"] = interval([q[0] for q in taken.values()], ".0f")
        baseline = groups.get((loss, "baseline"), {})
        compared = {s: q for s, run in baseline.items() if s in taken and (q := quantities(run))}
        for i, what in enumerate(("steps", "time", "phase time")):
            ratios = [q[i] / taken[s][i] for s, q in compared.items()] if name != "baseline" else []
            row |= {f"speed-up in {what}": interval(ratios), f"paper, {what}": printed[i]}
        rows.append(row)
    return rows


def by_threshold(groups: Groups) -> list[Row]:
    """The speed-up in steps by the test accuracy that is to be passed."""
    rows = []
    for (loss, name), runs in groups.items():
        baseline = groups.get((loss, "baseline"), {})
        row = {"loss": loss, "method": name}
        for level in LEVELS:
            steps = {s: n for s, run in runs.items() if (n := steps_to(run, level)) is not None}
            if name == "baseline":
                row[f"{level:.2f}"] = interval(list(steps.values()), ".0f") + " steps"
                continue
            of_baseline = {s: steps_to(run, level) for s, run in baseline.items()}
            both = [s for s in steps if of_baseline.get(s) is not None]
            row[f"{level:.2f}"] = interval([of_baseline[s] / max(steps[s], 1) for s in both])
        rows.append(row)
    return rows


def accuracies_and_cosines(groups: Groups) -> list[Row]:
    """Table 2: at the end of the runs, the extremes over classes, points and seeds."""
    rows = []
    for (loss, name), runs in groups.items():
        printed = PAPER.get((loss, name), ("",) * 5)
        accuracies = [100 * run.metrics["test_accuracy"][-1] for run in runs.values()]
        extremes = [run.config.get("results", {}) for run in runs.values()]
        least = [r["smallest_row_cosine"] for r in extremes if "smallest_row_cosine" in r]
        most = [r["largest_row_cosine"] for r in extremes if "largest_row_cosine" in r]
        rows.append(
            {
                "loss": loss,
                "method": name,
                "runs": str(len(runs)),
                "test accuracy, %": interval(accuracies, ".1f"),
                "paper, accuracy": printed[3],
                "cosines": f"{min(least):.3f} / {max(most):.3f}" if least else "–",
                "paper, cosines": printed[4],
            }
        )
    return rows
