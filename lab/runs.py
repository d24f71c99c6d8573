"""A run is a folder: config.yaml, metrics.csv, checkpoint.pt, figure.png.

Every file is replaced as a whole, so that a process killed at any moment leaves either the old
one or the new one. The checkpoint carries the measurements made before it; metrics.csv is written
from them, so that the two cannot disagree after an interruption.
"""

from __future__ import annotations

import contextlib
import csv
import math
import os
import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch
import yaml

from lab.errors import UserError
from lab.options import Shared
from lab.provenance import now, provenance


class Run:
    """The folder of one run, `<out_dir>/<script>/<name>`.

    Opening it creates the folder, or finds a run to continue in it.

    Args:
        script: name of the script, the folder above the run's.
        options: the options of this call.

    Raises:
        UserError: if the folder holds a run made with other options, something that is not a
            run, or a damaged one, and `overwrite` is not set; or if another process works in it.
    """

    def __init__(self, script: str, options: Shared) -> None:
        self.script = script
        self.options = options
        self.folder = Path(options.out_dir) / script / options.run_name()
        self.device = options.torch_device()
        self.rows: list[dict[str, float]] = []
        self.step = 0
        self.seconds = 0.0
        self.finished = False
        self._saved: dict[str, Any] = {}
        self._written = -math.inf  # when metrics.csv was, in seconds
        self._open()

    def metrics(self) -> dict[str, numpy.ndarray]:
        """The measurements so far, one array a column."""
        return columns(self.rows)

    def record(self, step: int, values: dict[str, Any]) -> None:
        """Adds a row; `step` counts the updates made before it.

        metrics.csv has it within a second or so, and as soon as the checkpoint is written.
        """
        self.rows.append({"step": step, **{key: float(value) for key, value in values.items()}})
        if time.monotonic() - self._written >= 1:  # since all rows are written each time
            self._write_metrics()

    def save(self, step: int, seconds: float, state: dict[str, Any], finished: bool) -> None:
        """Writes the checkpoint: the state after `step` updates, and the rows until then.

        Args:
            step: updates made.
            seconds: time spent on updates so far, in seconds; of the main thread's work on a CPU.
            state: name -> module, optimiser, random generator, or anything else with
                `state_dict` and `load_state_dict` made of tensors, numbers, strings and lists.
            finished: whether the run ends here.
        """
        content = {
            "step": step,
            "seconds": seconds,
            "finished": finished,
            "rows": self.rows,
            "state": {name: _state_of(part) for name, part in state.items()},
        }
        _replace(self.folder / "checkpoint.pt", lambda file: torch.save(content, file))
        self._write_metrics()
        self.step, self.seconds, self.finished = step, seconds, finished
        self._saved = content["state"]
        if finished:
            self._config["provenance"] |= {
                "finished": now(),
                "training_seconds": round(seconds, 2),
            }
            self._write_config()

    def restore(self, state: dict[str, Any]) -> None:
        """Puts the checkpoint's state, if there is one, into the parts of `state`."""
        for name, part in state.items():
            if name in self._saved:
                if isinstance(part, torch.Generator):
                    part.set_state(self._saved[name])
                else:
                    part.load_state_dict(self._saved[name])

    def store(self, results: dict[str, Any]) -> None:
        """Puts numbers found in the metrics (steps until an event, say) into config.yaml."""
        self._config["results"] = results
        self._write_config()

    def results(self) -> dict[str, Any]:
        """What `store` has put into config.yaml."""
        return self._config.get("results", {})

    def saved_state(self, name: str) -> dict[str, Any]:
        """The checkpoint's state of one part, on the CPU, for figures that need the network."""
        return self._saved[name]

    def save_figure(self, figure: Any) -> None:
        """Writes figure.png."""
        write_figure(self.folder / "figure.png", figure)

    def command(self) -> str:
        """The command that began this run."""
        return self._config["provenance"]["command"]

    def _open(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            config = self.folder / "config.yaml"
            if self.options.overwrite and config.exists():  # so that it is a run, and ours to empty
                for path in self.folder.iterdir():
                    if path.is_file() and path.name != ".lock":
                        path.unlink()
            if config.exists():
                self._continue(config)
            elif strangers := sorted(
                path.name
                for path in self.folder.iterdir()
                if path.name != ".lock" and not path.name.endswith(".tmp")
            ):
                raise UserError(
                    f"{self.folder} holds {strangers[0]} but no config.yaml, so it is not a run; "
                    "choose another --name or --out_dir"
                )
            else:
                self._begin()
        except OSError as error:
            raise UserError(
                f"--out_dir takes a folder to write to; {self.folder}: {error.strerror}"
            ) from None

    def _begin(self) -> None:
        options = {**vars(self.options), "overwrite": False}
        del options["compare"]  # of a call, not of a run
        self._config = {**options, "provenance": provenance(self.device)}
        self._write_config()

    def _continue(self, config: Path) -> None:
        self._config = read_config(config)
        ours = self.options.identity()
        if lacking := [f"--{key}" for key in ours if key not in self._config]:
            raise UserError(
                f"{config} lacks {', '.join(lacking)}, without which nobody knows what the run "
                "computed; `python -m lab.migrate RUNS` writes what older code did, or choose "
                "another --name"
            )
        differing = [
            f"{key}: {self._config[key]} there, {value} here"
            for key, value in ours.items()
            if self._config[key] != (list(value) if isinstance(value, tuple) else value)
        ]
        if differing:
            raise UserError(
                f"{self.folder} holds a run with other options ({'; '.join(differing)}); "
                "choose another --name, or give --overwrite to replace it"
            )
        checkpoint = self.folder / "checkpoint.pt"
        if not checkpoint.exists():
            return
        try:
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
            self.step, self.seconds = content["step"], content["seconds"]
            self.rows, self.finished = content["rows"], content["finished"]
            self._saved = content["state"]
        except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{checkpoint} is damaged ({first[:80]}); give --overwrite to start afresh"
            ) from None
        self._write_metrics()
        began_on = self._config["provenance"]["device"].split(",")[0].split(":")[0]
        if not self.finished:
            if began_on != self.device.type:
                raise UserError(
                    f"{self.folder} began on {began_on}; continue it with --device {began_on}, "
                    "or give --overwrite to start afresh"
                )
            current = provenance(self.device)
            self._config["provenance"].setdefault("continued", []).append(
                {"at_step": self.step, **{key: current[key] for key in ("started", "commit")}}
            )
            self._write_config()

    def _lock(self) -> None:
        """Keeps other processes out of the folder until this one ends, however it ends."""
        with contextlib.suppress(ImportError):  # not on Windows
            import fcntl

            self._lock_file = (self.folder / ".lock").open("w")
            try:
                # Not flock: a second run in the same process may follow the first at once.
                fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"another process is working in {self.folder}") from None
        for left_over in self.folder.glob("*.tmp"):
            left_over.unlink()

    def _write_config(self) -> None:
        text = yaml.safe_dump(self._config, sort_keys=False, allow_unicode=True)
        _replace(self.folder / "config.yaml", lambda file: file.write(text.encode()))

    def _write_metrics(self) -> None:
        lines = [",".join(self.rows[0])] if self.rows else []
        for row in self.rows:
            lines.append(",".join(str(int(v)) if k == "step" else repr(v) for k, v in row.items()))
        text = "".join(line + "\n" for line in lines)
        _replace(self.folder / "metrics.csv", lambda file: file.write(text.encode()))
        self._written = time.monotonic()


def at_one_step(runs: Iterable[Run]) -> list[list[Run]]:
    """Groups that can be trained together: after an interruption runs may be at different steps."""
    groups = defaultdict(list)
    for run in runs:
        groups[run.step, run.finished].append(run)
    return list(groups.values())


def write_figure(path: Path, figure: Any) -> None:
    """Writes a PNG; raises UserError where nothing can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, lambda f: figure.savefig(f, format="png", metadata={"Software": None}))
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


def read_config(path: str | Path) -> dict[str, Any]:
    """A run's config.yaml; raises UserError if it is damaged."""
    try:
        config = yaml.safe_load(Path(path).read_text())
        config["provenance"]["device"], config["provenance"]["command"]
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError):
        raise UserError(f"{path} is damaged; give --overwrite to start afresh") from None
    return config


def _state_of(part: Any) -> Any:
    """What a part holds, as copies on the CPU: training goes on with the tensors themselves."""
    return _copied(part.get_state() if isinstance(part, torch.Generator) else part.state_dict())


def _copied(state: Any) -> Any:
    if torch.is_tensor(state):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list | tuple) else state


def _replace(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file aside, forces it to the disk, and puts it in the place of `path`."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
