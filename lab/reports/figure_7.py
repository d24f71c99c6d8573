"""Figure 7: the Jacobian minimised, held up, and left alone, from inhibiting_generalisation.py.

Of finished runs that differ in `jr` and `seed` alone; words such as `clip=0` choose others.
"""

from __future__ import annotations

from collections.abc import Callable

from lab.bench import plots
from lab.reports import Request
from lab.reports._words import runs_in, save


def report(request: Request) -> None:
    """Draws the levels in a colour each, and a line a seed.

    Raises:
        UserError: if there is no finished run, or a word is no option.
    """
    draw_by_jr(request, "figure_7", "inhibiting_generalisation", label)


def label(level: float | None) -> str:
    """What is done to the Jacobian's norm."""
    return {None: "without the term", 0.0: "minimised"}.get(level, f"held at {level}")


def draw_by_jr(
    request: Request, name: str, script: str, label: Callable[[float | None], str]
) -> None:
    """Draws a script's `PANELS` of runs that differ in `jr`, labelled by it, and their seeds."""
    groups = runs_in(request, script, "jr")
    drawn = {label(runs[0].config["jr"]): [run.metrics for run in runs] for runs in groups}
    drawing = plots.metric_panels(drawn, request.script(script).PANELS, request.typed)
    save(request, script, [name, *request.words], drawing)
