"""Finished runs side by side: speed-ups against a baseline of the same seed, and Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lab.errors import UserError
from lab.runs import read_config


def finished_runs(folder: str | Path, same: dict[str, object]) -> Iterator[dict[str, Any]]:
    """Configurations of the finished runs in `folder` that have results and the options `same`.

    Args:
        folder: holds one folder a run.
        same: options and the values that a run must have.

    Raises:
        UserError: if a config.yaml is damaged.
    """
    for path in sorted(Path(folder).glob("*/config.yaml")):
        config = read_config(path)
        if (
            "results" in config
            and "finished" in config["provenance"]
            and all(config.get(key) == value for key, value in same.items())
        ):
            yield config


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
