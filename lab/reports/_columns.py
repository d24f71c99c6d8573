"""Groups of runs side by side, for the columns of a page's table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lab.reports._groups import Runs
from lab.reports._values import Values


class Columns:
    """Groups of runs, or values, side by side: what is asked of it is asked of each of them.

    What comes back as text is joined for a line of a table, `a | b | c`.
    """

    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*given: Any, **named: Any) -> Any:
            found = [
                getattr(part, name)(*(_dealt(each, i) for each in given), **named)
                for i, part in enumerate(self._parts)
            ]
            whole = all(isinstance(each, Runs | Values) for each in found)
            return Columns(*found) if whole else " | ".join(map(str, found))

        return ask

    def __truediv__(self, other: Any) -> Columns:
        return Columns(*(part / _dealt(other, i) for i, part in enumerate(self._parts)))

    def __sub__(self, other: Any) -> Columns:
        return Columns(*(part - _dealt(other, i) for i, part in enumerate(self._parts)))


def _dealt(given: Any, i: int) -> Any:
    return given._parts[i] if isinstance(given, Columns) else given
