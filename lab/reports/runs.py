"""Runs of any folder: status, step, accuracies, when they memorised and grokked, when they end.

python report.py runs                              # all of runs/, also while they go
python report.py runs runs/xor_grokking results    # of some folders: a run's, or one above it
python report.py runs elsewhere/metrics.csv        # a table of measurements by itself
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

import numpy

from lab.bench.errors import UserError
from lab.bench.files import is_finished, read_config, read_metrics
from lab.bench.statistics import Row, markdown
from lab.measures.events import grokking_events
from lab.reports import Request

COLUMNS = (
    *("run", "status", "step", "train accuracy", "test accuracy"),
    *("memorised at", "grokked at", "minutes", "ends"),
)


def report(request: Request) -> None:
    """Prints a table with a line for each run.

    Raises:
        UserError: if there is none.
    """
    places = [Path(word) for word in request.words] or [request.out_dir]
    folders = [folder for place in places for folder in folders_in(place)]
    print(markdown([line(folder) for folder in folders]))


def folders_in(place: Path) -> list[Path]:
    """The folders of runs at a place or below it.

    Raises:
        UserError: if there is none.
    """
    if place.name == "metrics.csv" and place.is_file():
        return [place.parent]
    names = ("config.yaml", "metrics.csv")
    found = sorted({path.parent for name in names for path in place.glob(f"**/{name}")})
    found = [f for f in found if not any(p[0] == "." for p in f.relative_to(place).parts)]
    if not found:
        raise UserError(f"runs takes folders of runs or a metrics.csv; there is none in {place}")
    return found


def line(folder: Path) -> Row:
    """What is known of one run; a folder may hold a metrics.csv only, or none yet."""
    row = dict.fromkeys(COLUMNS, "–") | {"run": "/".join(folder.parts[-2:])}
    try:
        config = read_config(folder) if (folder / "config.yaml").exists() else {}
        there = (folder / "metrics.csv").exists()
        metrics = read_metrics(folder) if there else {"step": numpy.zeros(1)}
    except UserError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return {**row, "status": "damaged"}
    step, steps = int(metrics["step"][-1]), config.get("steps")
    row["status"] = status(folder, config)
    row["step"] = f"{step:,} of {steps:,} ({step / max(steps, 1):.0%})" if steps else f"{step:,}"
    for column, name in (("train_accuracy", "train"), ("test_accuracy", "test")):
        row[f"{name} accuracy"] = f"{metrics[column][-1]:.3f}" if column in metrics else "–"
    for event, at in grokking_events(metrics).items():
        row[event.replace("_", " ")] = "–" if at is None else f"{at:,}"
    if there:
        row["minutes"], row["ends"] = times(folder, config, step)
    return row


def status(folder: Path, config: dict[str, Any]) -> str:
    """finished, running while a process works in the folder, or stopped."""
    if not config:
        return "–"
    if is_finished(folder):
        return "finished"
    try:
        import fcntl

        lock = (folder / ".lock").open()
    except FileNotFoundError:
        return "stopped"
    except (ImportError, OSError):  # on Windows; or it is not ours to read
        return "not finished"
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: for reading is enough
        except (BlockingIOError, PermissionError):
            return "running"
        except OSError:  # a disk without locks
            return "not finished"
    return "stopped"


def times(folder: Path, config: dict[str, Any], step: int) -> tuple[str, str]:
    """Minutes of updates so far and, of a run that goes, when it will have made all of them.

    From the speed since it was begun or continued, until its last measurement.
    """
    made_by = config.get("provenance", {})
    if "training_seconds" in made_by:
        return f"{made_by['training_seconds'] / 60:.1f}", "–"
    if status(folder, config) != "running":
        return "–", "–"
    measured = datetime.datetime.fromtimestamp(
        (folder / "metrics.csv").stat().st_mtime, datetime.UTC
    )
    minutes = "–"
    try:
        last = made_by.get("continued", [{"at_step": 0, "started": made_by["started"]}])[-1]
        began = datetime.datetime.fromisoformat(last["started"])
        passed, made = measured - began, step - last["at_step"]
        minutes = f"{passed.total_seconds() / 60:.1f}"
        end = began + passed * ((config["steps"] - last["at_step"]) / max(made, 0))
    except (LookupError, TypeError, ValueError, ArithmeticError):  # no update yet, or edited
        return minutes, "unknown"
    return minutes, f"{end.astimezone():%d %b %H:%M}"
