"""Figure 11: as Figure 1, of twelve training points.

python report.py figure_11 takes the words of figure_1.
"""

from __future__ import annotations

from lab.reports import Request
from lab.reports.figure_1 import draw_points


def report(request: Request) -> None:
    """Draws the first twelve training points, or those of `samples=`; raises as figure_1 does."""
    draw_points(request, "figure_11", range(12))
