"""Finished runs grouped by what tells them apart, means with 95 % intervals, and tables."""

from __future__ import annotations

import math
import statistics
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from scipy import stats

from lab.bench.errors import UserError
from lab.bench.files import is_finished, read_config, read_metrics
from lab.bench.options import WRITTEN_BY_RUNS

Row = dict[str, str]


class Finished(NamedTuple):
    """A finished run."""

    folder: Path
    config: dict[str, Any]
    metrics: dict[str, numpy.ndarray]

    @property
    def results(self) -> dict[str, Any]:
        """What the run found; raises UserError if it was stopped before it stored that."""
        if "results" not in self.config:
            raise UserError(f"{self.folder} was stopped at its end; its own command ends it")
        return self.config["results"]

    def seconds_per_step(self) -> float:
        """Mean seconds of an update, measurements left out; on a CPU the main thread's own."""
        return self.config["provenance"]["training_seconds"] / max(self.metrics["step"][-1], 1)


def all_finished(folder: Path) -> list[Finished]:
    """The finished runs of one script, in the order of their names."""
    folders = [path.parent for path in sorted(folder.glob("*/config.yaml"))]
    return [
        Finished(each, read_config(each), read_metrics(each))
        for each in folders
        if is_finished(each)
    ]


def finished_runs(
    runs: Path | Sequence[Finished], options: Any, free: Iterable[str], **fixed: Any
) -> dict[tuple[Any, ...], dict[int, Finished]]:
    """Finished runs by their values of the `free` options, and by seed.

    Args:
        runs: of one script, or their folder.
        options: the script's options class; all options but the free ones and the seed have to be
            at their defaults, or as `fixed` says.
        free: names of options.
        fixed: option -> value.
    """
    free = tuple(free)
    wanted = {**options().identity(), **fixed}
    known = {*options.__dataclass_fields__, *WRITTEN_BY_RUNS}  # a run of other options is another
    same = {k: v for k, v in wanted.items() if k not in free and (k != "seed" or k in fixed)}
    same |= {k: list(v) for k, v in same.items() if isinstance(v, tuple)}  # as YAML reads them
    groups: dict[tuple[Any, ...], dict[int, Finished]] = defaultdict(dict)
    for run in all_finished(runs) if isinstance(runs, Path) else runs:
        if {*free, "seed"} <= run.config.keys() <= known and all(
            run.config.get(key) == value for key, value in same.items()
        ):
            groups[tuple(run.config[name] for name in free)][run.config["seed"]] = run
    return groups


def arrival(steps: Sequence[float | None], ends: Sequence[float], form: str = ",.0f") -> str:
    """`4,140 [2,400, –], 4 of 5`: the median and its 95 % interval where runs never arrived.

    Those are censored at their last step: the median is that of the Kaplan-Meier estimate, its
    interval where the estimate's own (log-log) contains one half; – where no end is known. The
    log-log band has no value once every run has arrived: there it is Clopper's and Pearson's.

    Args:
        steps: until the event, None for a run that never arrived.
        ends: the last step of each run.
        form: of the numbers.
    """
    came = [step for step in steps if step is not None]
    counted = f"{len(came)} of {len(steps)}"
    if not came:
        return f"– ({counted})"
    late = [end for step, end in zip(steps, ends, strict=True) if step is None]
    found = stats.ecdf(stats.CensoredData(came, right=late)).sf
    with warnings.catch_warnings(action="ignore"):  # of the band without a value
        band = found.confidence_interval(method="log-log")
    all_came = found.probabilities == 0
    low = numpy.where(all_came, 0, band.low.probabilities)
    high = numpy.where(all_came, 1 - 0.025 ** (1 / len(came)), band.high.probabilities)

    def halved(shares: numpy.ndarray) -> str:
        below = numpy.flatnonzero(shares <= 0.5)
        return format(found.quantiles[below[0]], form) if len(below) else "–"

    median, first, last = map(halved, (found.probabilities, low, high))
    return f"{median} [{first}, {last}] ({counted})"


def interval(values: Sequence[float], form: str = ".2f", ratio: bool = False) -> str:
    """`7.56 [6.74, 8.38]`, the mean and its 95 % interval by Student's t; – of no value.

    Of a single value there is no interval, and of runs that never arrive no mean: count them
    beside it. Of ratios it is the geometric mean and the interval that the logarithms have, which
    holds no negative ratio, and in which twice as fast is as far from 1 as half as fast.
    """
    if not values:
        return "–"
    if len(values) == 1:
        return format(values[0], form)
    numbers = [math.log(value) for value in values] if ratio else list(values)
    mean, spread = statistics.fmean(numbers), statistics.stdev(numbers)
    half = stats.t.ppf(0.975, len(numbers) - 1) * spread / math.sqrt(len(numbers))
    found = [mean, mean - half, mean + half]
    mean, low, high = map(math.exp, found) if ratio else found
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def markdown(rows: Sequence[Row]) -> str:
    """Rows with the same keys as a table."""
    if not rows:
        raise UserError("there is nothing to put into a table")
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    return "\n".join(lines)
