"""The files of a run: written whole or not at all, and read with errors that say which one."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import yaml

from lab.bench.errors import UserError


def replace(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file aside, forces it to the disk, and puts it in the place of `path`."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def write_figure(path: Path, figure: Any) -> None:
    """Writes a PNG; raises UserError where nothing can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, lambda f: figure.savefig(f, format="png", metadata={"Software": None}))
    except OSError as error:
        raise UserError(f"--out_dir takes a folder to write to; {path}: {error.strerror}") from None


def columns(rows: list[dict[str, float]]) -> dict[str, numpy.ndarray]:
    """Rows of measurements as one array a column."""
    return {key: numpy.array([row[key] for row in rows]) for key in rows[0]} if rows else {}


def first_step(metrics: dict[str, numpy.ndarray], column: str, level: float) -> int | None:
    """The first measured step with `column` above `level`; None if there is none."""
    above = metrics[column] > level
    return int(metrics["step"][above.argmax()]) if above.any() else None


def read_metrics(folder: str | Path) -> dict[str, numpy.ndarray]:
    """The columns of a run's metrics.csv; raises UserError if there is none or it is damaged."""
    path = Path(folder) / "metrics.csv"
    try:
        with path.open(newline="") as file:
            return columns([{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)])
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (TypeError, ValueError):
        raise UserError(f"{path} is not a table of numbers") from None


def read_config(folder: str | Path) -> dict[str, Any]:
    """A run's config.yaml; raises UserError if there is none or it is damaged."""
    path = Path(folder) / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text())
        config["provenance"]["device"], config["provenance"]["command"]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError):
        raise UserError(f"{path} is damaged; give --overwrite to start afresh") from None
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
