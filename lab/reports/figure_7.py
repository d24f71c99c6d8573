"""Figure 7: the Jacobian minimised, held up, and left alone, from inhibiting_generalisation.py."""

from __future__ import annotations

from lab.bench import plots
from lab.bench.errors import UserError
from lab.bench.files import read_metrics, write_figure
from lab.reports import Request

SCRIPT = "inhibiting_generalisation"
RUNS = {"minimised": "default", "held at 5": "jr=5.0", "without the term": "jr=None"}


def report(request: Request) -> None:
    """Draws those of the three runs of seed 0 that are there.

    Raises:
        UserError: if there is none.
    """
    folder = request.out_dir / SCRIPT
    there = {label: read_metrics(folder / name) for label, name in RUNS.items()
             if (folder / name / "metrics.csv").exists()}  # fmt: skip
    if not there:
        raise UserError(f"there is no run in {folder}; {SCRIPT}.py makes them")
    panels = request.script(SCRIPT).PANELS
    write_figure(folder / "figure_7.png", plots.metric_panels(there, panels, request.typed))
    print(folder / "figure_7.png")
