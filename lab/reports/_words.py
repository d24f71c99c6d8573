"""What the words of a report say, `steps=8000 seed=1`: its runs, and its picture's name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lab.bench.errors import UserError
from lab.bench.files import write_figure
from lab.bench.statistics import Finished, finished_runs
from lab.bench.takes import Takes
from lab.reports import Request

LONGEST = 120  # characters of a picture's name, or bytes


def file_name(title: str) -> str:
    """A title that a file can have: cut if it is long, with a sum that tells it from others."""
    if len(title.encode()) <= LONGEST:
        return title
    start = title.encode()[: LONGEST - 12].decode(errors="ignore")
    return f"{start}…{hashlib.sha256(title.encode()).hexdigest()[:8]}"


def save(request: Request, script: str, parts: Iterable[str], drawing: Figure) -> Path:
    """Writes a report's picture beside the script's runs, prints where, and returns that.

    Args:
        request: what `report.py` was asked for; its `--name` goes before the parts.
        script: whose runs they are.
        parts: what names the picture else.
        drawing: the picture.
    """
    path = request.out_dir / script / f"{file_name(request.name or ','.join(parts))}.png"
    write_figure(path, drawing)
    print(path)
    return path


def none_there(request: Request, script: str) -> UserError:
    """What to raise where no finished run is as the words say."""
    chosen = " ".join(request.words) or "its other options at their defaults"
    return UserError(
        f"there is no finished run of {script}.py with {chosen} in {request.out_dir / script}; "
        f"results/{script}/README.md has the commands"
    )


def options_in(request: Request, options: Any) -> dict[str, Any]:
    """Option -> value, for runs in which other options than the free ones have no default.

    Args:
        request: what `report.py` was asked for; its words are `option=value` each.
        options: the options class of the script whose runs the report takes.

    Raises:
        UserError: if a word is no option of the script, or the option does not take the value.
    """
    takes, found, names = Takes.of(options), {}, options().identity()
    for word in request.words:
        name, equals, value = word.partition("=")
        if not equals or name not in names:
            raise UserError(
                f"the words of this report are options of runs, such as steps=8000, got {word!r}"
            )
        flag = {"true": True, "false": False}.get(value, value)  # as YAML reads them
        found[name] = takes[name](name, flag if takes[name].kind is bool else value)
    return found


def runs_in(request: Request, script: str, *free: str) -> list[list[Finished]]:
    """Finished runs whose options are as the words say, in groups that differ in their seeds.

    Args:
        request: what `report.py` was asked for; its words are `option=value` each.
        script: the script's name.
        free: names of options that may have any value, by which the groups are sorted, none last.

    Raises:
        UserError: if there is no such run, or as `options_in`.
    """
    options = request.script(script).Options
    given = options_in(request, options)
    free = tuple(name for name in free if name not in given)
    groups = finished_runs(request.out_dir / script, options, free, **given)
    if not groups:
        raise none_there(request, script)
    keys = sorted(groups, key=lambda key: [(v is None, v) for v in key])
    return [[run for _, run in sorted(groups[key].items())] for key in keys]
