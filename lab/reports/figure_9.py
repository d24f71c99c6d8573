"""Figure 9: Figure 8 with embedding and unembedding fixed, from modular_addition.py."""

from __future__ import annotations

from lab.reports import Request
from lab.reports.figure_7 import draw_by_jr
from lab.reports.figure_8 import SCRIPT, label


def report(request: Request) -> None:
    """Draws both in a colour each, and a line a seed; words as `figure_8` takes them.

    Raises:
        UserError: if there is no finished run, or a word is no option.
    """
    fixed = request._replace(words=("fixed_embedding=true", *request.words))
    draw_by_jr(fixed, "figure_9", SCRIPT, label)
