"""Runs that differ in their seeds, and one number from each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy

from lab.bench.files import first_step
from lab.bench.statistics import Finished
from lab.reports._rows import NOT_RUN, Rows
from lab.reports._values import Number, Values


class Runs:
    """Finished runs that differ in nothing but their seeds, in the order of these."""

    def __init__(self, runs: Iterable[Finished]) -> None:
        self.runs = list(runs)

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def n(self) -> int:
        """The number of runs."""
        return len(self)

    def one(self, seed: int = 0) -> Runs:
        """Only the run of this seed."""
        return Runs(run for run in self.runs if run.config["seed"] == seed)

    def without(self, seed: int = 0) -> Runs:
        """All but the run of this seed."""
        return Runs(run for run in self.runs if run.config["seed"] != seed)

    def first(self, column: str, above: Values | float) -> Values:
        """The first measured step with the column above a level, or above each run's own."""
        pairs = zip(self.runs, _each(above, self.n), strict=True)
        steps = [first_step(run.metrics, column, level) for run, level in pairs]
        return self._values(steps, tuple(run.metrics["step"][-1] for run in self.runs))

    def first_of(self, column: str, least: Values | float) -> Values:
        """The first measured step with the column at a level or above."""
        levels = [numpy.nextafter(level, -numpy.inf) for level in _each(least, self.n)]
        return self.first(column, Values(tuple(levels)))

    def start(self, column: str) -> Values:
        """The first measurement."""
        return self._of(lambda m: m[column][0])

    def end(self, column: str) -> Values:
        """The last measurement."""
        return self._of(lambda m: m[column][-1])

    def at(self, column: str, step: Values | float) -> Values:
        """At a step, or the next one that was measured; None where it is not there."""
        found = []
        for run, wanted in zip(self.runs, _each(step, self.n), strict=True):
            least = numpy.inf if wanted is None else wanted
            there = numpy.flatnonzero(run.metrics["step"] >= least)
            found.append(float(run.metrics[column][there[0]]) if len(there) else None)
        return self._values(found)

    def most(self, column: str, after: float = 0, until: float = numpy.inf) -> Values:
        """The largest measurement between two steps."""
        return self._of(lambda m: numpy.nanmax(m[column][_within(m, after, until)]))

    def most_while(self, column: str, other: str, above: float) -> Values:
        """The largest measurement among those with another column above a level."""
        return self._of(lambda m: numpy.nanmax(m[column][m[other] > above]))

    def fewest(self, column: str, after: float = 0, until: float = numpy.inf) -> Values:
        """The smallest measurement between two steps."""
        return self._of(lambda m: numpy.nanmin(m[column][_within(m, after, until)]))

    def step_of_most(self, column: str, after: float = 0, until: float = numpy.inf) -> Values:
        """The step of the largest measurement between two steps."""

        def measure(m: dict[str, numpy.ndarray]) -> float:
            there = _within(m, after, until)
            return m["step"][there][numpy.nanargmax(m[column][there])]

        return self._of(measure)

    def step_of_fewest(self, column: str, after: float = 0) -> Values:
        """The step of the smallest measurement after a step."""
        return self._of(
            lambda m: m["step"][_within(m, after)][numpy.nanargmin(m[column][_within(m, after)])]
        )

    def relative_difference(self, column: str, other: str, share: float) -> Values:
        """Of two columns, by the other; `share` of the measurements have less, 1 for the most."""
        return self._of(lambda m: numpy.quantile(abs(m[column] / m[other] - 1), share))

    def picked(self, rows: Rows, column: str, **cells: str) -> Values:
        """A column of a table, in the rows of these runs in which other cells are as given."""
        names = [run.folder.name for run in self.runs]
        found = [row[column] for name in names for row in rows.having(run=name, **cells)]
        return Values(tuple(float(cell) for cell in found if cell))

    def last_step(self) -> Values:
        """The updates made."""
        return self.end("step")

    def result(self, name: str) -> Values:
        """A number under `results` of config.yaml."""
        return self._values(run.results.get(name) for run in self.runs)

    def nested(self, name: str) -> Values:
        """The numbers of a list under `results` of config.yaml, one of each seed within a run."""
        return Values(tuple(x for run in self.runs for x in run.results[name]))

    def costs(self) -> list[tuple[str, ...]]:
        """circuit_efficiency's rows of its first seed: pairs, ‖θ‖² with both labels, accuracy."""
        rows = []
        for m in (run.metrics for run in self.runs):
            first = m["seed"] == m["seed"][0]
            for pairs in sorted(set(m["pairs"])):
                of = [first & (m["pairs"] == pairs) & (m["random_labels"] == r) for r in (0, 1)]
                true, random = (m["squared_norm"][which][0] for which in of)
                found = f"{m['test_accuracy'][of[0]][0]:.2f}"
                rows.append((f"{pairs:.0f}", f"{true:.1f}", f"{random:.1f}", found))
        return rows

    def minutes(self) -> Values:
        """Of updates, without measurements; on a CPU the main thread's own."""
        return self._values(run.config["provenance"]["training_seconds"] / 60 for run in self.runs)

    def option(self, name: str) -> Any:
        """The value of an option, which all of them share."""
        return self.runs[0].config[name] if self.runs else NOT_RUN

    def seeds(self) -> str:
        """`seed 0`, `seeds 0, 2`, or `seeds 0 to 9`."""
        given = [run.config["seed"] for run in self.runs]
        if len(given) > 3 and given == list(range(given[0], given[-1] + 1)):
            return f"seeds {given[0]} to {given[-1]}"
        return f"seed{'s' * (len(given) > 1)} {', '.join(map(str, given))}" if given else NOT_RUN

    def _of(self, measure: Callable[[dict[str, numpy.ndarray]], float]) -> Values:
        return self._values(float(measure(run.metrics)) for run in self.runs)

    def _values(self, numbers: Iterable[Number], ends: tuple[float, ...] = ()) -> Values:
        return Values(tuple(numbers), ends, tuple(run.config["seed"] for run in self.runs))


def _each(given: Values | float, n: int) -> tuple[Number, ...]:
    return given.numbers if isinstance(given, Values) else (given,) * n


def _within(metrics: dict[str, numpy.ndarray], after: float, until: float = numpy.inf) -> Any:
    return (metrics["step"] >= after) & (metrics["step"] <= until)
