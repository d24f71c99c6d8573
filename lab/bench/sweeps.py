"""Grids, from a file or a command line, and the runs that they hold."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lab.bench.errors import UserError, reason
from lab.bench.files import is_finished, read_yaml
from lab.bench.options import check_needs
from lab.bench.shared import Shared
from lab.bench.takes import Takes

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 1_000_000  # numbers of a range


class Job(NamedTuple):
    """One run of a script."""

    script: str
    """Its name, without `.py`."""
    options: Shared

    @property
    def folder(self) -> Path:
        """Where the run lies, whether it is there or not."""
        return Path(self.options.out_dir) / self.script / self.options.run_name()

    @property
    def made(self) -> bool:
        """Whether nothing is left to do; raises UserError if the folder holds a damaged run.

        A run that was stopped between its last update and its figure is still to be drawn; one
        without a checkpoint has been recorded without its figure.
        """
        drawn = (self.folder / f"figure.{self.options.format}").exists()
        recorded = not (self.folder / "checkpoint.pt").exists()
        return not self.options.overwrite and (drawn or recorded) and is_finished(self.folder)

    def words(self) -> list[str]:
        """What a user would type for this run, without the interpreter."""
        words = [f"{self.script}.py"]
        for f in dataclasses.fields(self.options):
            value = getattr(self.options, f.name)
            if value is True:
                words.append(f"--{f.name}")
            elif value != f.default:
                values = value if isinstance(value, tuple) else [value]
                texts = ["none" if each is None else str(each) for each in values]
                # Behind an = since -1e-05 by itself would be taken for an option.
                dash = len(texts) == 1 and texts[0].startswith("-")
                words += [f"--{f.name}={texts[0]}"] if dash else [f"--{f.name}", *texts]
        return words

    def line(self) -> str:
        """What a user would type for this run, in a shell."""
        return shlex.join(["python", *self.words()])


def grids_of(given: str) -> list[dict[str, Any]]:
    """The grids of a YAML file, or the one of a script without options.

    Raises:
        UserError: if it is neither, or a grid does not name its script.
    """
    if given.endswith(".py"):
        return [{"script": given}]
    try:
        content = read_yaml(given)
    except (OSError, ValueError) as error:
        raise UserError(f"a grid is a script or a YAML file; {given}: {reason(error)}") from None
    grids = content if isinstance(content, list) else [content]
    if not grids or not all(
        isinstance(g, dict) and isinstance(g.get("script"), str) for g in grids
    ):
        raise UserError(
            f"{given} should hold options with the name of a `script`, or a list of such"
        )
    return grids


def options_in(words: list[str]) -> dict[str, list[Any]]:
    """`--seed 0:3 --jr 0 1.0 --grokfast` as lists of values; a flag alone is true."""
    found: dict[str, list[Any]] = {}
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name] = [value] if equals else []
        elif found:
            found[name].append(word)
        else:
            raise UserError(f"sweep.py takes one script or file, got {word} too")
    return {name: values or [True] for name, values in found.items()}


def jobs_of(
    script: str,
    options_class: type[Shared],
    grid: dict[str, Any],
    typed: dict[str, Any] | None = None,
) -> list[Job]:
    """The runs of a grid: all combinations of its lists, for each of its cells.

    Args:
        script: the script's name.
        options_class: the script's options.
        grid: option -> value, list of values, or range "0:10" (from 0 to 9); and under `cells` a
            list of further options, each of which is combined with all of these. An option of
            several words takes a list of them as one value, and a list of such lists as several.
        typed: options of a command line, which choose the cells that list their values, if there
            are any, and replace what else the grid and its cells say of them.

    Raises:
        UserError: for an option that the script does not know, or that does not go with the
            others, a value that it does not take, or an empty range.
    """
    takes, jobs = Takes.of(options_class), []
    for lists in _lists(script, takes, grid, typed or {}):
        for row in itertools.product(*lists.values()):
            chosen = {k: takes[k](k, v) for k, v in zip(lists, row, strict=True)}
            jobs.append(Job(script, options_class(**chosen)))
            check_needs(jobs[-1].options)
    return jobs


def size_of(
    script: str,
    options_class: type[Shared],
    grid: dict[str, Any],
    typed: dict[str, Any] | None = None,
) -> int:
    """How many runs `jobs_of` would give; raises as it does, for ranges and unknown options."""
    cells = _lists(script, Takes.of(options_class), grid, typed or {})
    return sum(math.prod(map(len, lists.values())) for lists in cells)


def each_once(jobs: Iterable[Job]) -> list[Job]:
    """The jobs without repetitions; raises UserError if two that differ share a folder."""
    found: dict[Path, Job] = {}
    for job in jobs:
        if found.setdefault(job.folder, job) != job:
            raise UserError(f"the grid holds {job.folder.name} of {job.script}.py twice")
    return list(found.values())


def _lists(
    script: str, takes: dict[str, Takes], grid: dict[str, Any], typed: dict[str, Any]
) -> list[dict[str, Sequence[Any]]]:
    """The values of each option, for each cell."""
    cells = grid.get("cells", [{}])
    if not isinstance(cells, list) or not cells or not all(isinstance(c, dict) for c in cells):
        raise UserError(f"cells takes a list of options for {script}.py, got {cells}")

    def taken(name: str, value: Any) -> set[Any]:
        return {takes[name](name, each) for each in _values(name, takes[name], value)}

    def chosen(cell: dict[str, Any]) -> bool:
        named = [name for name in typed if name in cell and name in takes]
        return bool(named) and all(taken(n, typed[n]) <= taken(n, cell[n]) for n in named)

    found = []
    for cell in list(filter(chosen, cells)) or cells:
        given = {k: v for k, v in {**grid, **cell, **typed}.items() if k != "cells"}
        for name in given:
            if name in ("config", "print_config"):
                raise UserError(f"--{name} is for one run; a sweep takes a YAML file as its word")
            if name not in takes:
                raise UserError(f"{script}.py has no option --{name}; its --help lists them")
            if name in typed and takes[name].many:
                raise UserError(
                    f"--{name} takes several words, which a sweep would read as several values; "
                    "give it in a YAML file"
                )
        found.append({name: _values(name, takes[name], value) for name, value in given.items()})
    return found


def _values(name: str, takes: Takes, given: Any) -> Sequence[Any]:
    """A list as it is, a range "2:5" as 2, 3, 4, and one value as a list of it."""
    if takes.many and not (isinstance(given, list) and any(isinstance(v, list) for v in given)):
        return [given]
    found: list[Any] = []
    for value in given if isinstance(given, list) else [given]:
        match = re.fullmatch(r"(-?\d+):(-?\d+)", value) if isinstance(value, str) else None
        if match and takes.kind is not str:
            numbers = range(int(match[1]), int(match[2]))
            if not 0 < len(numbers) <= LONGEST:
                what = f"of at most {LONGEST:,} numbers" if numbers else "that is not empty"
                raise UserError(f"--{name} takes a range {what}, got {value}")
            found += numbers
        elif takes.kind is bool and value in ("true", "false"):  # as a command line has them
            found.append(value == "true")
        else:
            found.append(value)
    if not found:
        raise UserError(f"--{name} takes at least one value")
    return found
