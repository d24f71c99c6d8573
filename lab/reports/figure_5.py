"""Figure 5: rank, alignment and robustness with GrokAlign and without, from delayed_robustness.py.

Of finished runs that differ in `jr` and `seed` alone; words such as `filters=8` choose others.
"""

from lab.reports import Request
from lab.reports._by_jr import draw_by_jr


def report(request: Request) -> None:
    """Draws weight decay alone and GrokAlign; raises UserError if there is no finished run."""
    draw_by_jr(request, "figure_5", "delayed_robustness")
