"""Command lines from a block of defaults: a dataclass, one line an option."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import sys
import typing
from pathlib import Path

import yaml

from lab.bench.errors import UserError, reason
from lab.bench.files import read_yaml
from lab.bench.takes import Takes

LETTERS = {int: "N", float: "X", str: "TEXT"}
WRITTEN_BY_RUNS = ("provenance", "results")  # so that a run's config.yaml can be given back


def option(
    default: object,
    help: str | None,
    *,
    needs: str = "",
    divides: str = "",
    names_run: bool = True,
    **takes: typing.Any,
) -> typing.Any:
    """A field of an options class: its default, what it is with its unit, and what it takes.

    Args:
        default, help: its value when nothing is given, and a sentence for `--help`; None for an
            option that is there for runs alone, and stays out of it.
        needs: another option without which this one has no meaning, and its values that give it
            one, all but false, none and zero if there are none: "model transformer", "sgd".
        divides: another option, a whole number of which this one must be a divisor.
        names_run: False for an option that does not change what a run computes; it stays out of
            the run's name and may differ when the run is continued.
        takes: `least`, `above` (excludes its bound), `most`: bounds of a number; or `choices`, the
            only values allowed.
    """
    metadata = {"help": help, "needs": needs, "divides": divides, "takes": takes}
    return dataclasses.field(default=default, metadata={**metadata, "names_run": names_run})


def parse(cls: type, account: str | None, argv: list[str] | None = None) -> typing.Any:
    """The options that a command line gives, as a `cls`; a bad one ends with a line and code 2.

    `cls` is a dataclass whose fields are made by `option`; `argv` is `sys.argv` when None. Of the
    script's account of itself `--help` tells the first line, the commands and where to read on.
    """
    title, *lines = (account or "").strip().splitlines() or [""]
    commands = "\n".join(line for line in lines if line.startswith("    "))
    verdict = re.search(r"results/\S*README\.md.*", (account or "").replace("%", "%%"))
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name, usage="python %(prog)s [--option VALUE …]",
        description=f"{title}\n\n{commands}".strip(), formatter_class=_Page, allow_abbrev=False,
        epilog=f"More: the head of %(prog)s, README.md, {verdict[0]}" if verdict else None,
    )  # fmt: skip
    parser.error = lambda message: parser.exit(
        2, f"{parser.prog}: error: {' '.join(message.split())}\n"
    )
    takes = Takes.of(cls)
    own, shared = map(parser.add_argument_group, ("the experiment", "the run"))
    for f in dataclasses.fields(cls):
        group = shared if f.name in cls.__mro__[-2].__dataclass_fields__ else own
        what, text = takes[f.name], argparse.SUPPRESS
        default = " ".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        default = f" (default: {'none' if default in (None, '') else default})"
        if f.metadata["help"] is not None:
            text = f.metadata["help"].replace("%", "%%") + default * (what.kind is not bool)
        if what.kind is bool:
            group.add_argument(f"--{f.name}", action="store_true", default=None, help=text)
            continue
        letter = "{" + ",".join(what.choices) + "}" if what.choices else LETTERS[what.kind]
        # Any number of words, so that it is said here what the option takes.
        group.add_argument(f"--{f.name}", nargs="*", metavar=letter, help=text)
    text = "YAML file of options, as --print_config prints it or a run keeps it; flags win over it"
    shared.add_argument("--config", nargs="?", const="", action="append", metavar="FILE", help=text)
    shared.add_argument("--print_config", action="store_true", help="print all options as YAML")
    given, unknown = parser.parse_known_args(argv)
    flags = {name: getattr(given, name) for name in takes if getattr(given, name) is not None}
    try:
        if unknown:
            raise UserError(f"unknown option {shlex.join(unknown)}; --help lists the options")
        content = [_read(path, takes) for path in given.config or ()]
        values = {name: v for part in [*content, flags] for name, v in part.items()}
        options = cls(**{name: takes[name](name, value) for name, value in values.items()})
        check_needs(options)
    except UserError as error:
        parser.error(str(error))
    if given.print_config:
        every = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(options).items()}
        print(yaml.safe_dump(every, sort_keys=False, allow_unicode=True), end="")
        parser.exit(0)
    return options


class _Page(argparse.RawDescriptionHelpFormatter):
    """Paragraphs as they are, and `--p N` where argparse would write `--p [N ...]`."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return str(action.metavar)


def check_needs(options: typing.Any) -> None:
    """Raises UserError if an option is given whose mode is not, or is no divisor where it must."""
    for f in dataclasses.fields(options):
        value, whole = getattr(options, f.name), f.metadata["divides"]
        if whole and getattr(options, whole) % value:
            there = getattr(options, whole)
            raise UserError(f"--{f.name} takes a divisor of --{whole} {there}, got {value}")
        if f.metadata["needs"] and value != f.default:
            other, *values = f.metadata["needs"].split()
            there = getattr(options, other)
            if not (str(there) in values if values else there):
                words = f"--{other} {' or '.join(values)}".strip()
                raise UserError(f"--{f.name} goes with {words}, which is not given")


def _read(path: str, takes: dict[str, Takes]) -> dict[str, object]:
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--config takes a YAML file of options; {path!r}: {reason(error)}"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"--config takes a YAML file of options; {path!r} holds no mapping")
    for key in content:
        if key not in takes and key not in WRITTEN_BY_RUNS:
            raise UserError(f"--config: unknown option {key!r:.60}; --help lists the options")
    return {key: value for key, value in content.items() if key in takes}
