"""Finished runs grouped by what tells them apart, means with 95 % intervals, and tables."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from scipy import stats

from lab.bench.errors import UserError
from lab.bench.files import is_finished, read_config, read_metrics

Row = dict[str, str]


class Finished(NamedTuple):
    """A finished run."""

    folder: Path
    config: dict[str, Any]
    metrics: dict[str, numpy.ndarray]

    def seconds_per_step(self) -> float:
        """Mean seconds of an update, measurements left out; on a CPU the main thread's own."""
        return self.config["provenance"]["training_seconds"] / max(self.metrics["step"][-1], 1)


def finished_runs(
    folder: Path, options: Any, free: Iterable[str], **fixed: Any
) -> dict[tuple[Any, ...], dict[int, Finished]]:
    """Finished runs by their values of the `free` options, and by seed.

    Args:
        folder: of one script's runs.
        options: the script's options class; all options but the free ones and the seed have to be
            at their defaults, or as `fixed` says.
        free: names of options.
        fixed: option -> value.
    """
    free = tuple(free)
    wanted = {**options().identity(), **fixed}
    same = {k: v for k, v in wanted.items() if k not in (*free, "seed")}
    groups: dict[tuple[Any, ...], dict[int, Finished]] = defaultdict(dict)
    for path in sorted(folder.glob("*/config.yaml")):
        if is_finished(path.parent):
            config = read_config(path.parent)
            if all(config.get(key) == value for key, value in same.items()):
                key = tuple(config[name] for name in free)
                groups[key][config["seed"]] = Finished(
                    path.parent, config, read_metrics(path.parent)
                )
    return groups


def interval(values: Sequence[float], form: str = ".2f") -> str:
    """`7.56 [6.74, 8.38]`, the mean and its 95 % interval by Student's t; – of no value.

    Of a single value there is no interval, and of runs that never arrive no mean: count them
    beside it.
    """
    if not values:
        return "–"
    mean = statistics.fmean(values)
    if len(values) == 1:
        return format(mean, form)
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:{form}} [{mean - half:{form}}, {mean + half:{form}}]"


def markdown(rows: Sequence[Row]) -> str:
    """Rows with the same keys as a table."""
    if not rows:
        raise UserError("there is nothing to put into a table")
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    return "\n".join(lines)
