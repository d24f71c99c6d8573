"""Finished runs side by side: speed-ups against a baseline of the same seed, as tables."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.errors import UserError
from lab.options import Shared
from lab.runs import read_config


def by_method(
    folder: Path, o: Shared, method: dict[str, Any]
) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """Results of the finished runs in `folder`: (loss, method) -> seed -> what the run stored.

    Args:
        folder: holds one folder a run.
        o: runs count that agree with it in all options but `method`'s, `loss_fn` and `seed`.
        method: options that tell the methods apart, and their values in the one called baseline.

    Raises:
        UserError: if there is none, or a config.yaml is damaged.
    """
    free = {*method, "seed", "loss_fn"}
    same = {key: value for key, value in o.identity().items() if key not in free}
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/config.yaml")):
        config = read_config(path)
        if (
            "results" in config
            and "finished" in config["provenance"]
            and all(config.get(key) == value for key, value in same.items())
        ):
            differing = [key for key, value in method.items() if config.get(key, value) != value]
            name = ",".join(k if config[k] is True else f"{k}={config[k]}" for k in differing)
            group = groups.setdefault((config["loss_fn"], name or "baseline"), {})
            group[config["seed"]] = config["results"]
    if not groups:
        raise UserError(
            f"--table finds no finished run with these options in --out_dir {o.out_dir}"
        )
    return groups


def speed_ups(baseline: dict[int, float], method: dict[int, float]) -> list[float]:
    """Baseline over method, above 1 where the method is faster, for each seed that both have."""
    return [baseline[seed] / method[seed] for seed in sorted(baseline.keys() & method.keys())]


def mean_and_deviation(values: Sequence[float], form: str = ".2f") -> str:
    """`7.56 ± 0.82`, without the sample standard deviation of a single value; – of none."""
    if not values:
        return "–"
    mean = format(statistics.fmean(values), form)
    return f"{mean} ± {statistics.stdev(values):{form}}" if len(values) > 1 else mean


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """Rows with the same keys as a table."""
    if not rows:
        raise UserError("there is nothing to put into a table")
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    return "\n".join(lines)


Row = dict[str, str]


def table_rows(
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]],
    levels: tuple[float, float],
    paper: dict[tuple[str, str], tuple[str, ...]],
) -> tuple[list[Row], list[Row]]:
    """Rows of Table 1, speed-ups against the baseline of the same seed, and of Table 2.

    Args:
        groups: (loss, method) -> seed -> results of the run: `steps_to_<level>`, None where it
            was not reached, `seconds_per_step`, `test_accuracy` and the extreme cosines between
            the Jacobian's rows and their point, `smallest_row_cosine` and `largest_row_cosine`.
        levels: test accuracies that begin and end the grokking phase.
        paper: (loss, method) -> printed speed-ups in steps, time and time of the phase, test
            accuracy, and cosines.
    """
    begin, end = (f"steps_to_{level}" for level in levels)

    def quantities(runs: dict[int, dict[str, Any]]) -> list[dict[int, float]]:
        """Steps, seconds and seconds of the grokking phase of the runs that arrived, by seed."""
        there = {seed: r for seed, r in runs.items() if r[end] is not None}
        return [
            {seed: r[end] for seed, r in there.items()},
            {seed: r[end] * r["seconds_per_step"] for seed, r in there.items()},
            {seed: (r[end] - r[begin]) * r["seconds_per_step"] for seed, r in there.items()},
        ]

    first, second = [], []
    for (loss, name), runs in sorted(
        groups.items(), key=lambda g: (g[0][0], g[0][1] != "baseline")
    ):
        printed = paper.get((loss, name), ("",) * 5)
        taken = quantities(runs)
        row = {"loss": loss, "method": name}
        row |= {f"reached {levels[1]}": f"{len(taken[0])} of {len(runs)}"}
        row["steps"] = mean_and_deviation(list(taken[0].values()), ".0f")
        baseline = quantities(groups.get((loss, "baseline"), {}))
        for what, ours, theirs, of_paper in zip(
            ("steps", "time", "phase time"), baseline, taken, printed[:3], strict=True
        ):
            ratios = speed_ups(ours, theirs) if name != "baseline" else []
            row |= {f"speed-up in {what}": mean_and_deviation(ratios), f"paper, {what}": of_paper}
        first.append(row)

        def over_seeds(key: str, form: str, factor: int = 1, runs: dict = runs) -> str:
            return mean_and_deviation([factor * r[key] for r in runs.values()], form)

        second.append(
            {
                "loss": loss,
                "method": name,
                "runs": str(len(runs)),
                "test accuracy, %": over_seeds("test_accuracy", ".1f", 100),
                "paper, accuracy": printed[3],
                "smallest row cosine": over_seeds("smallest_row_cosine", ".3f"),
                "largest row cosine": over_seeds("largest_row_cosine", ".3f"),
                "paper, cosines": printed[4],
            }
        )
    return first, second


def write_tables(folder: Path, tables: Sequence[list[Row]]) -> None:
    """Writes tables to `table_<number>.csv` in `folder` and prints them as Markdown."""
    paths = [folder / f"table_{number}.csv" for number in range(1, len(tables) + 1)]
    for path, rows in zip(paths, tables, strict=True):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    for number, (path, rows) in enumerate(zip(paths, tables, strict=True), start=1):
        print(f"Table {number}\n\n{markdown(rows)}\n\n{path}")
