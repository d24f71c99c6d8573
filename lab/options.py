"""Command lines from a block of defaults.

A script writes its options as a dataclass, one line each, and `parse` makes the command line:

    @dataclass
    class Options(Shared):
        jr: float = option(0.0, "weight of the Jacobian regulariser, λ_Jac", least=0)

`jsonargparse` reads YAML files, merges them with the flags and prints the configuration.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType

import jsonargparse
import torch

from lab.errors import UserError


class NotTaken(argparse.ArgumentTypeError, ValueError):
    """A value that an option does not take; argparse and jsonargparse each catch their own base."""


class Takes:
    """What an option takes: converts and checks a value, and says what it takes."""

    def __init__(
        self,
        annotation: object,
        least: float | None = None,
        above: float | None = None,
        most: float | None = None,
        choices: tuple[str, ...] = (),
    ) -> None:
        # tuple[str, ...]: one or more words after the flag, or none at all
        self.many = typing.get_origin(annotation) is tuple
        if self.many:
            annotation = typing.get_args(annotation)[0]
        kinds = typing.get_args(annotation) or (annotation,)
        self.optional = NoneType in kinds
        self.kind = next(kind for kind in kinds if kind is not NoneType)
        self.least, self.above, self.most, self.choices = least, above, most, choices

    def __call__(self, value: object) -> object:
        """The value in its type; raises NotTaken, which says what is taken instead."""
        if self.many:
            return tuple(
                self.word(v) for v in (value if isinstance(value, list | tuple) else [value])
            )
        return self.word(value)

    def word(self, value: object) -> object:
        """One value, as it stands after its flag; raises NotTaken."""
        try:
            return self._convert(value)
        except (TypeError, ValueError, OverflowError):
            raise NotTaken(f"takes {self}, got {value!r}") from None

    def _convert(self, value: object) -> object:
        if self.optional and (value is None or value in ("none", "null")):
            return None
        # YAML reads 1e-3 as a string and 3 as a whole number; a flag is always a string.
        if (isinstance(value, bool) != (self.kind is bool)) or value is None:
            raise ValueError
        if self.kind is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        number = self.kind(value)
        if self.kind is float and not math.isfinite(number):
            raise ValueError
        if self.choices and number not in self.choices:
            raise ValueError
        if (
            (self.least is not None and number < self.least)
            or (self.above is not None and number <= self.above)
            or (self.most is not None and number > self.most)
        ):
            raise ValueError
        return number

    def __str__(self) -> str:
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        else:
            noun = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
            bounds = [
                f"{word} {bound:g}"
                for word, bound in (
                    ("of at least", self.least),
                    ("above", self.above),
                    ("of at most", self.most),
                )
                if bound is not None
            ]
            text = " ".join([noun[self.kind], " and ".join(bounds)]).strip()
        return f"{text}, or none" if self.optional else text


def option(
    default: object,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    names_run: bool = True,
) -> typing.Any:
    """A field of an options class: its default, what it is with its unit, and what it takes.

    Args:
        default: the value when nothing is given.
        help: one sentence for `--help`.
        least, above, most: bounds of a number; `above` excludes its bound.
        choices: the only values allowed.
        names_run: False for an option that does not change what a run computes; it stays out of
            the run's name and may differ when the run is continued.
    """
    takes = {"least": least, "above": above, "most": most, "choices": choices}
    return field(default=default, metadata={"help": help, "takes": takes, "names_run": names_run})


@dataclass
class Shared:
    """The options of every script. A script overrides a default by writing the field again."""

    steps: int = option(1000, "updates of the parameters", least=0)
    num_logs: int = option(
        64, "measurements, log-spaced, at most one a step, the first and last included", least=2
    )
    seed: int = option(0, "seed of data, initial weights and every other draw", least=0)
    dtype: str = option("float32", "precision of training", choices=("float32", "float64"))
    device: str = option(
        "auto", "auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps, …", names_run=False
    )
    out_dir: str = option("runs", "folder that holds the runs", names_run=False)
    name: str | None = option(
        None,
        "name of the run's folder; by default made from what differs from the defaults",
        names_run=False,
    )
    overwrite: bool = option(
        False, "start afresh, replacing a run that is in the folder", names_run=False
    )
    checkpoint_every: float = option(
        30.0, "seconds between checkpoints; 0 for one after every update", least=0, names_run=False
    )
    compare: tuple[str, ...] = option(
        (),
        "draw these runs of the script, folders, into one figure; trains nothing",
        names_run=False,
    )

    def torch_dtype(self) -> torch.dtype:
        """The precision as torch names it."""
        return getattr(torch, self.dtype)

    def torch_device(self) -> torch.device:
        """The device to run on; raises UserError when the one asked for is not there."""
        cuda = torch.cuda.is_available()
        mps = torch.backends.mps.is_available()
        if self.device == "auto":
            # An Apple GPU has no float64, so that "auto" leaves it aside in that precision.
            return torch.device(
                "cuda" if cuda else "mps" if mps and self.dtype != "float64" else "cpu"
            )
        present = ["auto", "cpu", *(["mps"] if mps else [])]
        if cuda:
            present += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if self.device not in present:
            raise UserError(
                f"--device takes one of {', '.join(present)} on this machine, got {self.device!r}"
            )
        if self.device == "mps" and self.dtype == "float64":
            raise UserError("--device mps has no float64; take --dtype float32 or --device cpu")
        return torch.device(self.device)

    def identity(self) -> dict[str, object]:
        """The options that decide what a run computes."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["names_run"]}

    def run_name(self) -> str:
        """What differs from the defaults, `jr=1.0,seed=3`; `default` if nothing does."""
        defaults = {f.name: f.default for f in fields(self)}
        parts = [
            key if value is True else f"{key}={_text(value)}"
            for key, value in self.identity().items()
            if value != defaults[key]
        ]
        if self.name is not None and (self.name in ("", ".", "..") or set(self.name) & set("/\\")):
            raise UserError(f"--name takes a folder's name, without slashes, got {self.name!r}")
        return self.name or ",".join(parts) or "default"


def _text(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def fields(options: Shared | type[Shared]) -> list[dataclasses.Field]:
    """The fields of an options class, the script's own first."""
    everything = dataclasses.fields(options)
    shared = {f.name for f in dataclasses.fields(Shared)}
    return sorted(everything, key=lambda f: f.name in shared)


class _Parser(jsonargparse.ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> typing.NoReturn:  # type: ignore[override]
        """One line that names the option, and exit code 2."""
        text = " ".join(message.split())
        if text.startswith("argument --"):
            text = text.removeprefix("argument ").replace(": ", " ", 1)
        elif text.startswith('Parser key "'):
            key, rest = text.removeprefix('Parser key "').split('": ', 1)
            text = f"--{key} {rest}" if rest.startswith("takes ") else f"--{key}: {rest}"
        elif text.startswith("Option '"):
            text = f"--config: unknown option {text.split(chr(39))[1]!r}; --help lists the options"
        elif text.startswith(("Problems parsing config", "Unexpected config")):
            text = f"--config takes a YAML file of options: {text}"
        elif text.startswith("unrecognized arguments"):
            text = f"unknown option {text.split(': ', 1)[1]}; --help lists the options"
        self.exit(2, f"{self.prog}: error: {text}\n")


OptionsType = typing.TypeVar("OptionsType", bound=Shared)


def parse(
    cls: type[OptionsType], description: str | None, argv: list[str] | None = None
) -> OptionsType:
    """Options from a command line (`sys.argv` when None); a bad one exits with code 2.

    Args:
        cls: the script's options, a dataclass over `Shared`.
        description: the script's docstring, the first part of `--help`.
        argv: the words of the command line.
    """
    parser = _Parser(
        prog=Path(sys.argv[0]).name,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action="config",
        metavar="FILE",
        help="YAML file of options, as --print_config prints it or as a run's config.yaml holds "
        "it; flags win over the file",
    )
    hints = typing.get_type_hints(cls)
    shared = {f.name for f in dataclasses.fields(Shared)}
    groups = {
        False: parser.add_argument_group("the experiment"),
        True: parser.add_argument_group("the run"),
    }
    takes = {}
    for f in fields(cls):
        takes[f.name] = Takes(hints[f.name], **f.metadata["takes"])
        group = groups[f.name in shared]
        if takes[f.name].kind is bool:
            group.add_argument(
                f"--{f.name}", action="store_true", default=f.default, help=f.metadata["help"]
            )
        else:
            default = "none" if f.default in (None, ()) else f.default
            group.add_argument(
                f"--{f.name}",
                type=takes[f.name].word,
                # a list, since jsonargparse checks and replaces its entries
                default=list(f.default) if takes[f.name].many else f.default,
                metavar="{" + ",".join(takes[f.name].choices) + "}"
                if takes[f.name].choices
                else {int: "N", float: "X", str: "TEXT"}[takes[f.name].kind],
                help=f"{f.metadata['help']} (default: {default})",
                **({"nargs": "+"} if takes[f.name].many else {}),
            )
    # So that a run's own config.yaml can be given back as --config.
    for written_by_the_run in ("--provenance", "--results"):
        parser.add_argument(written_by_the_run, type=dict[str, typing.Any], help=argparse.SUPPRESS)
    parsed = vars(parser.parse_args(_files_first(sys.argv[1:] if argv is None else argv)))
    try:
        values = {}
        for name, check in takes.items():
            # Checked here too, since a file's `null` and a flag's value pass unseen.
            current = name
            values[name] = check(parsed[name])
    except NotTaken as error:
        parser.error(f"argument --{current}: {error}")
    return cls(**values)


def _files_first(argv: list[str]) -> list[str]:
    """Moves --config to the front, since what comes later wins and flags shall win."""
    files, flags = [], []
    words = iter(argv)
    for word in words:
        if word == "--config":
            files += [word, *itertools.islice(words, 1)]
        elif word.startswith("--config="):
            files.append(word)
        else:
            flags.append(word)
    return files + flags
