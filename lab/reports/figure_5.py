"""Figure 5: rank, alignment and robustness with GrokAlign and without, from delayed_robustness.py.

Of finished runs that differ in `jr` and `seed` alone; words such as `filters=8` choose others.
"""

from __future__ import annotations

from lab.reports import Request
from lab.reports.figure_7 import draw_by_jr


def report(request: Request) -> None:
    """Draws weight decay alone and GrokAlign in a colour each, and a line a seed.

    Raises:
        UserError: if there is no finished run, or a word is no option.
    """
    draw_by_jr(request, "figure_5", "delayed_robustness", label)


def label(weight: float | None) -> str:
    """What regularises."""
    return f"GrokAlign (λ_Jac {weight:g})" if weight else "weight decay"
