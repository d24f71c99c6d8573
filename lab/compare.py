"""Several runs of one script in one figure: what `--compare RUN …` draws."""

from __future__ import annotations

import itertools
from pathlib import Path

from lab import plots
from lab.errors import UserError
from lab.options import Shared
from lab.provenance import command_line
from lab.runs import read_config, read_metrics, write_figure

LONGEST = 120  # characters of a file's name that runs' names fill


def compare(
    script: str, o: Shared, panels: dict[str, tuple[str, ...]], against: str = "step"
) -> None:
    """Draws the runs `o.compare`, one colour each, and prints the figure's path.

    The figure goes to `<out_dir>/<script>/`, under the names of the runs.

    Args:
        script: name of the script, the folder above the runs'.
        o: the options; a run is given as its folder, or by its name in `<out_dir>/<script>`.
        panels: label of a panel's vertical axis -> columns of metrics.csv, one to four, in the
            line styles solid, dashed, dotted and dash-dotted.
        against: column of the horizontal axis; any but the step is drawn as points.

    Raises:
        UserError: if one of them is not a run, or not one of this script.
    """
    above = Path(o.out_dir) / script
    folders = [run_folder("--compare", given, above) for given in o.compare]
    runs = {
        name: read_metrics(folder) for name, folder in zip(names(folders), folders, strict=True)
    }
    for name, metrics in runs.items():
        wanted = {against, *itertools.chain.from_iterable(panels.values())}
        if missing := sorted(wanted - metrics.keys()):
            raise UserError(
                f"--compare takes runs of {script}.py with measurements; {name} has no column "
                f"{missing[0]!r}"
            )
    drawing = plots.metric_panels(runs, panels, command_line(), against)
    title = " against ".join(name.replace("/", "_") for name in runs)
    if len(title) > LONGEST:
        title = f"{title[:LONGEST]}… ({len(runs)} runs)"
    write_figure(above / f"{title}.png", drawing)
    print(above / f"{title}.png")


def run_folder(flag: str, given: str, above: Path) -> Path:
    """The run that an option names: a folder, or the name of one in `above`.

    Raises:
        UserError: if it holds no run.
    """
    for folder in (Path(given), above / given):
        if (folder / "config.yaml").exists():
            read_config(folder / "config.yaml")
            return folder
    raise UserError(f"{flag} takes a run's folder, or its name in {above}; {given!r} holds no run")


def names(folders: list[Path]) -> list[str]:
    """The folders' last parts, or more of them where the last do not tell them apart."""
    length = 1
    while len({folder.parts[-length:] for folder in folders}) < len(set(folders)):
        length += 1
    return ["/".join(folder.parts[-length:]) for folder in folders]
