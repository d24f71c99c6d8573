"""Figure 8: a transformer on modular addition with GrokAlign and without, from modular_addition.py.

Of finished runs that differ in `jr` and `seed` alone; words such as `p=59` choose others.
"""

from lab.reports import Request
from lab.reports._by_jr import draw_by_jr


def report(request: Request) -> None:
    """Draws weight decay alone and GrokAlign; raises UserError if there is no finished run."""
    draw_by_jr(request, "figure_8", "modular_addition")
