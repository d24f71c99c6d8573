"""The files of a run: written whole or not at all, and read with errors that say which one."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy
import yaml

from lab.bench.errors import UserError, WriteError, reason

LONGEST_YAML = 1_000_000  # bytes; a device such as /dev/zero has no end
AFRESH = "with --overwrite the run's own command starts it afresh"


def replace(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file aside, forces it to the disk, and puts it in the place of `path`.

    Raises:
        WriteError: if it cannot be written; what was there before stays, and nothing beside it.
    """
    aside, content = path.with_name(path.name + ".tmp"), io.BytesIO()
    try:
        write(content)
        with aside.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        missing = 0
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
            missing = content.tell() - shutil.disk_usage(path.parent).free
        much = f", {-(-missing // 1000):,} kB are missing" if missing > 0 else ""
        raise WriteError(
            f"{path} cannot be written: {reason(error)}{much}; what was there before is kept, and "
            "a run's command without --overwrite goes on from there"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Writes a text, as `replace` does."""
    replace(path, lambda file: file.write(text.encode()))


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Writes rows as CSV, with the columns of the first; raises as `replace`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_figure(path: Path, figure: Any) -> None:
    """Writes a picture, of the kind that its name ends with; raises UserError or WriteError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        dated = {"png": "Software", "pdf": "CreationDate", "svg": "Date"}  # else no two are equal
        kind = path.suffix[1:]
        replace(path, lambda f: figure.savefig(f, format=kind, metadata={dated[kind]: None}))
    except OSError as error:
        raise UserError(f"--out_dir takes a folder to write to; {path}: {reason(error)}") from None


class _Yaml(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML in which no key is given twice; of two YAML itself takes the last in silence."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (pair[0].value for pair in node.value if isinstance(pair[0], yaml.ScalarNode)):
            if key in seen:
                raise ValueError(f"{key} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def whole_number(self, node: yaml.ScalarNode) -> Any:
        """Of a range its text; YAML 1.1 takes 1:11 for 71, as minutes and seconds."""
        return node.value if ":" in node.value else self.construct_yaml_int(node)


_Yaml.add_constructor("tag:yaml.org,2002:int", _Yaml.whole_number)


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no YAML, with a line that says why.
    """
    with Path(path).open("rb") as file:
        content = file.read(LONGEST_YAML + 1)
    if len(content) > LONGEST_YAML:
        raise ValueError(f"it holds more than {LONGEST_YAML:,} bytes")
    try:
        return yaml.load(content, _Yaml)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(reason(error)) from None


def lock(folder: Path) -> IO[str]:
    """Keeps other processes out of a folder until this one ends, however it ends.

    A disk without locks is used without one, and a line says so.

    Returns:
        the file that is locked, to be kept open.

    Raises:
        UserError: if another process works in the folder.
    """
    file = (folder / ".lock").open("w")
    with contextlib.suppress(ImportError):  # not on Windows
        import fcntl

        try:
            # Not flock: a second run in the same process may follow the first at once.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(f"another process is working in {folder}") from None
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            print(
                f"{folder}: warning: no locks here; let only one run write to it", file=sys.stderr
            )
    return file


def columns(rows: list[dict[str, float]]) -> dict[str, numpy.ndarray]:
    """Rows of measurements as one array a column."""
    return {key: numpy.array([row[key] for row in rows]) for key in rows[0]} if rows else {}


def first_step(metrics: dict[str, numpy.ndarray], column: str, level: float) -> int | None:
    """The first measured step with `column` above `level`; None if there is none."""
    above = metrics[column] > level
    return int(metrics["step"][above.argmax()]) if above.any() else None


def read_metrics(folder: str | Path) -> dict[str, numpy.ndarray]:
    """The columns of a run's metrics.csv; raises UserError as `read_rows`."""
    return columns(read_rows(folder))


def read_rows(folder: str | Path) -> list[dict[str, float]]:
    """The measurements of a run's metrics.csv, one at least.

    Raises:
        UserError: if it cannot be read, or is no table of numbers with a column of steps.
    """
    path = Path(folder) / "metrics.csv"
    try:
        with path.open(newline="") as file:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        if not (rows and all(math.isfinite(row["step"]) for row in rows)):
            raise ValueError
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (TypeError, ValueError, KeyError, csv.Error):
        raise UserError(f"{path} is not a table of numbers, `step` among them") from None
    return rows


def read_config(folder: str | Path) -> dict[str, Any]:
    """A run's config.yaml; raises UserError if there is none or it is damaged."""
    path = Path(folder) / "config.yaml"
    try:
        config = {"draws": "device", **read_yaml(path)}  # as code did that had no such option
        made_by = config["provenance"]
        if not (
            all(isinstance(made_by[key], str) for key in ("device", "command"))
            and isinstance(made_by.get("training_seconds", 0), float | int)
            and isinstance(config.get("steps", 0), int)
        ):
            raise TypeError
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} is damaged; {AFRESH}") from None
    return config


def is_finished(folder: str | Path) -> bool:
    """Whether a folder holds a run that has ended; raises UserError if it is damaged."""
    return (Path(folder) / "config.yaml").exists() and "finished" in read_config(folder)[
        "provenance"
    ]


def run_folder(given: str, above: Path) -> Path:
    """The run that a user names: a folder, or the name of one in `above`.

    Raises:
        UserError: if it holds no run.
    """
    for folder in (Path(given), above / given):
        if (folder / "config.yaml").exists():
            read_config(folder)
            return folder
    raise UserError(
        f"a run is given by its folder, or by its name in {above}; {given!r} holds none"
    )


def short_names(folders: list[Path]) -> list[str]:
    """The folders' last parts, or more of them where the last do not tell them apart."""
    length = 1
    while len({folder.parts[-length:] for folder in folders}) < len(set(folders)):
        length += 1
    return ["/".join(folder.parts[-length:]) for folder in folders]
