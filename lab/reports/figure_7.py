"""Figure 7: the Jacobian minimised, held up, and left alone, from inhibiting_generalisation.py.

Of finished runs that differ in `jr` and `seed` alone; words such as `clip=0` choose others.
"""

from __future__ import annotations

from lab.reports import Request
from lab.reports._by_jr import draw_by_jr


def report(request: Request) -> None:
    """Draws the levels in a colour each; raises UserError if there is no finished run."""
    draw_by_jr(request, "figure_7", "inhibiting_generalisation", label)


def label(level: float | None) -> str:
    """What is done to the Jacobian's norm."""
    return {None: "without the term", 0.0: "minimised"}.get(level, f"held at {level}")
