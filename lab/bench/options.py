"""Command lines from a block of defaults: a dataclass, one line an option."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import typing
from pathlib import Path
from types import NoneType

import yaml

from lab.bench.errors import UserError

NOUNS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
LETTERS = {int: "N", float: "X", str: "TEXT"}
WRITTEN_BY_RUNS = ("provenance", "results")  # so that a run's config.yaml can be given back


def option(
    default: object, help: str, *, names_run: bool = True, **takes: typing.Any
) -> typing.Any:
    """A field of an options class: its default, what it is with its unit, and what it takes.

    Args:
        default, help: its value when nothing is given, and a sentence for `--help`.
        names_run: False for an option that does not change what a run computes; it stays out of
            the run's name and may differ when the run is continued.
        takes: `least`, `above` (excludes its bound), `most`: bounds of a number; or `choices`, the
            only values allowed.
    """
    metadata = {"help": help, "takes": takes, "names_run": names_run}
    return dataclasses.field(default=default, metadata=metadata)


class Takes:
    """What an option takes: converts and checks a value, and says what it takes."""

    def __init__(self, hint: object, least=None, above=None, most=None, choices=()) -> None:
        self.many = typing.get_origin(hint) is tuple  # tuple[str, ...]: one or more words
        kinds = typing.get_args(hint) or (hint,)
        self.optional = NoneType in kinds
        self.kind = next(kind for kind in kinds if kind not in (NoneType, ...))
        self.least, self.above, self.most, self.choices = least, above, most, choices

    @classmethod
    def of(cls, options: type) -> dict[str, Takes]:
        """What each option of an options class takes, by name."""
        hints, fields = typing.get_type_hints(options), dataclasses.fields(options)
        return {f.name: cls(hints[f.name], **f.metadata["takes"]) for f in fields}

    def __call__(self, name: str, value: object) -> object:
        """The value of the option `name` in its type; raises UserError."""
        words = value if isinstance(value, list | tuple) else [value]
        converted, got = [], " ".join(map(str, words)) or "nothing"
        try:
            if not self.many and len(words) != 1:
                raise ValueError
            for word in words:
                got = repr(word)
                converted.append(self._converted(word))
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"--{name} takes {self}, got {got}") from None
        return tuple(converted) if self.many else converted[0]

    def _converted(self, value: object) -> object:
        if self.optional and (value is None or value in ("none", "null")):
            return None
        # YAML reads 1e-3 as a string and 3 as a whole number; a flag's value is always a string.
        half = self.kind is int and isinstance(value, float) and not value.is_integer()
        if value is None or half or isinstance(value, bool) != (self.kind is bool):
            raise ValueError
        number = self.kind(value)
        if (
            (self.kind is float and not math.isfinite(number))
            or (self.choices and number not in self.choices)
            or (self.least is not None and number < self.least)
            or (self.above is not None and number <= self.above)
            or (self.most is not None and number > self.most)
        ):
            raise ValueError
        return number

    def __str__(self) -> str:
        bounds = {"of at least": self.least, "above": self.above, "of at most": self.most}
        limits = " and ".join(f"{word} {b:g}" for word, b in bounds.items() if b is not None)
        text = f"{NOUNS[self.kind]} {limits}".strip()
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        return f"{text}, or none" if self.optional else text


def parse(cls: type, description: str | None, argv: list[str] | None = None) -> typing.Any:
    """The options that a command line gives, as a `cls`; a bad one ends with a line and code 2.

    `cls` is a dataclass whose fields are made by `option`; `argv` is `sys.argv` when None.
    """
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name, description=description, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    takes = Takes.of(cls)
    own, shared = map(parser.add_argument_group, ("the experiment", "the run"))
    for f in dataclasses.fields(cls):
        group = shared if f.name in cls.__mro__[-2].__dataclass_fields__ else own
        what, text = takes[f.name], f.metadata["help"].replace("%", "%%")
        if what.kind is bool:
            group.add_argument(f"--{f.name}", action="store_true", default=None, help=text)
            continue
        text += f" (default: {'none' if f.default in (None, ()) else f.default})"
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
            raise UserError(f"unknown option {' '.join(unknown)}; --help lists the options")
        content = [_read(path, takes) for path in given.config or ()]
        values = {name: v for part in [*content, flags] for name, v in part.items()}
        options = cls(**{name: takes[name](name, value) for name, value in values.items()})
    except UserError as error:
        parser.error(str(error))
    if given.print_config:
        every = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(options).items()}
        print(yaml.safe_dump(every, sort_keys=False, allow_unicode=True), end="")
        parser.exit(0)
    return options


def _read(path: str, takes: dict[str, Takes]) -> dict[str, object]:
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(f"--config takes a YAML file of options; {path}: {reason[:100]}") from None
    if not isinstance(content, dict):
        raise UserError(f"--config takes a YAML file of options; {path} holds no mapping")
    for key in content:
        if key not in takes and key not in WRITTEN_BY_RUNS:
            raise UserError(f"--config: unknown option {key!r}; --help lists the options")
    return {key: value for key, value in content.items() if key in takes}
