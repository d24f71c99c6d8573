"""Figure 8: a transformer on modular addition with GrokAlign and without, from modular_addition.py.

Of finished runs that differ in `jr` and `seed` alone; words such as `p=59` choose others.
"""

from __future__ import annotations

from lab.reports import Request
from lab.reports.figure_7 import draw_by_jr

SCRIPT = "modular_addition"


def report(request: Request) -> None:
    """Draws both in a colour each, and a line a seed.

    Raises:
        UserError: if there is no finished run, or a word is no option.
    """
    draw_by_jr(request, "figure_8", SCRIPT, label)


def label(jr: float) -> str:
    """What trains beside the cross-entropy."""
    return f"GrokAlign {jr:g}" if jr else "weight decay"
