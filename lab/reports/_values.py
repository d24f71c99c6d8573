"""A number of each of some runs, as a page prints it."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from scipy import stats

from lab.bench.statistics import arrival, interval
from lab.reports._rows import NOT_RUN

Number = float | None


@dataclass(frozen=True)
class Values:
    """A number of each run, None for what never came; arithmetic is seed by seed."""

    numbers: tuple[Number, ...]
    ends: tuple[float, ...] = ()
    """Of steps until an event: the last step of each run, up to which it was looked for."""
    seeds: tuple[int, ...] = ()
    """Of each run; by their places where nobody says."""
    ratio: bool = False
    """Whether these are ratios of two numbers of a run, or of two runs."""

    @property
    def n(self) -> int:
        """The number of runs."""
        return len(self.numbers)

    @property
    def came(self) -> list[float]:
        """The numbers that are there."""
        return [number for number in self.numbers if number is not None]

    def each(self, form: str = ",.0f", never: str = "never") -> str:
        """`2,236, 2,312, never`."""
        if self.numbers and not self.came:
            return never
        return ", ".join(_text(x, form, never) for x in self.numbers) or NOT_RUN

    def span(self, form: str = ",.0f", never: str = "never") -> str:
        """`2,236–2,312`, from the smallest to the largest, and how many have one if not all."""
        if not self.numbers:
            return NOT_RUN
        if not self.came:
            return never
        low, high = (_text(f(self.came), form, never) for f in (min, max))
        between = " to " if "−" in low + high or "e" in low + high else "–"
        text = low if low == high else f"{low}{between}{high}"
        return text if len(self.came) == self.n else f"{text} in {len(self.came)} of {self.n}"

    def interval(self, form: str = ",.0f") -> str:
        """Mean, of ratios the geometric one, and 95 % interval; the median where runs are late."""
        if not self.numbers:
            return NOT_RUN
        if len(self.came) < self.n:
            # Of a ratio nobody knows how late it would have been.
            return arrival(self.numbers, self.ends, form) if self.ends else self.span(form)
        return signed(interval(self.came, form, self.ratio))

    def most_of(self, form: str = ",.0f") -> str:
        """The largest of the runs' numbers."""
        return _text(max(self.came), form, "") if self.came else NOT_RUN

    def __truediv__(self, other: Values | float) -> Values:
        found = self._with(other, operator.truediv)
        return replace(found, ratio=isinstance(other, Values))

    def __mul__(self, other: Values | float) -> Values:
        return self._with(other, operator.mul)

    def __sub__(self, other: Values | float) -> Values:
        return self._with(other, operator.sub)

    def __add__(self, other: Values | float) -> Values:
        """Of numbers, the sums; of two groups of runs, use `together`."""
        return self._with(other, operator.add)

    def together(self, *others: Values) -> Values:
        """These numbers and those of other runs."""
        all_of_them = (self, *others)
        return Values(
            tuple(x for values in all_of_them for x in values.numbers),
            tuple(x for values in all_of_them for x in values.ends),
        )

    def shares(self, of: int, form: str = ".1f") -> str:
        """`2.0 % [0.8, 4.5]`: shares of so many points, and each one's 95 % interval (Wilson)."""
        found = []
        for share in self.came:
            tested = stats.binomtest(round(share * of), of)
            low, high = tested.proportion_ci(method="wilson")
            found.append(f"{100 * share:{form}} % [{100 * low:{form}}, {100 * high:{form}}]")
        return ", ".join(found) or NOT_RUN

    def _with(self, other: Values | float, operation: Callable[[float, float], float]) -> Values:
        left = self._by_seed()
        right = other._by_seed() if isinstance(other, Values) else dict.fromkeys(left, other)
        pairs = {seed: (x, right[seed]) for seed, x in left.items() if seed in right}
        numbers = (None if None in pair else operation(*pair) for pair in pairs.values())
        return Values(tuple(numbers), seeds=tuple(pairs))

    def _by_seed(self) -> dict[int, Number]:
        return dict(zip(self.seeds or range(self.n), self.numbers, strict=True))


def _text(number: Number, form: str, never: str) -> str:
    return never if number is None else signed(format(number, form))


def signed(text: str) -> str:
    """With minus signs before negative numbers; the hyphen of 1e-8 stays."""
    return re.sub(r"(?<![\de])-(?=\d)", "−", text)
