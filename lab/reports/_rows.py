"""Tables that reports have made or written, read again by their cells."""

from __future__ import annotations

NOT_RUN = "not run yet"


class Rows(list[dict[str, str]]):
    """A table: a dictionary a row."""

    def having(self, **cells: str) -> Rows:
        """The rows in which these cells are as given."""
        return Rows(row for row in self if cells.items() <= row.items())

    def text(self, column: str, **cells: str) -> str:
        """A cell of the first row in which others are as given."""
        return next((row[column] for row in self.having(**cells)), NOT_RUN)
