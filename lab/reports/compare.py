"""Several runs of one script in one figure: `python report.py compare SCRIPT RUN …`."""

from __future__ import annotations

from lab.bench import plots
from lab.bench.errors import UserError
from lab.bench.files import read_config, read_metrics, run_folder, short_names
from lab.bench.options import WRITTEN_BY_RUNS
from lab.reports import Request
from lab.reports._words import save


def report(request: Request) -> None:
    """Draws a script's `PANELS` of the runs, one colour each.

    The figure goes to `<out_dir>/<script>/`, under `--name` or the names of the runs, which are
    given as folders or by name.

    Raises:
        UserError: if a run is not there, or is not one of this script.
    """
    if len(request.words) < 2:
        raise UserError("compare takes a script and its runs, as in: compare xor_grokking default")
    name, *given = request.words
    script = request.script(name)
    above = request.out_dir / name.removesuffix(".py")
    folders = [run_folder(each, above) for each in given]
    known = {*script.Options.__dataclass_fields__, *WRITTEN_BY_RUNS}
    for folder in folders:
        if others := read_config(folder).keys() - known:
            raise UserError(
                f"compare takes runs of {name}, which has no option --{min(others)}; {folder} has"
            )
    runs = dict(zip(short_names(folders), map(read_metrics, folders), strict=True))
    against = getattr(script, "AGAINST", "step")
    for run, metrics in runs.items():
        # Of a panel's columns some may be missing: an attack not made, or a run of older code.
        for wanted in ((against,), *script.PANELS.values()):
            if not metrics.keys() & set(wanted):
                raise UserError(
                    f"compare takes runs of {name} with measurements; {run} has no column "
                    f"{wanted[0]!r}"
                )
    drawing = plots.metric_panels(runs, script.PANELS, request.typed, against)
    title = " against ".join(run.replace("/", "_") for run in runs)
    save(request, above.name, [title], drawing)
