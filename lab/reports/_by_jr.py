"""A script's figure of several runs: a colour for each `jr`, a line a seed."""

from __future__ import annotations

from collections.abc import Callable

from lab.bench import plots
from lab.reports import Request
from lab.reports._words import runs_in, save


def label(jr: float) -> str:
    """What regularises."""
    return f"GrokAlign (λ_Jac {jr:g})" if jr else "weight decay"


def draw_by_jr(
    request: Request, name: str, script: str, label: Callable[[float | None], str] = label
) -> None:
    """Draws a script's `PANELS` of runs that differ in `jr`, labelled by it, and their seeds.

    Args:
        request: whose words choose the values of the other options.
        name: of the figure, which begins the picture's.
        script: whose runs they are.
        label: `jr` -> its words in the legend.

    Raises:
        UserError: if there is no finished run, or a word is no option.
    """
    groups = runs_in(request, script, "jr")
    drawn = {label(runs[0].config["jr"]): [run.metrics for run in runs] for runs in groups}
    drawing = plots.metric_panels(drawn, request.script(script).PANELS, request.typed)
    save(request, script, [name, *request.words], drawing)
