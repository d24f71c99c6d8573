"""A run is a folder: config.yaml, metrics.csv, checkpoint.pt, figure.png.

Every file is replaced as a whole, so that a process killed at any moment leaves either the old
one or the new one. The checkpoint carries the measurements made before it; metrics.csv is written
from them, so that the two cannot disagree after an interruption.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy
import torch
import yaml

from lab.bench.checkpoints import copied, read_checkpoint, restore
from lab.bench.draws import Batches, Draws
from lab.bench.errors import UserError, reason
from lab.bench.files import columns, lock, read_config, read_rows, replace, write_figure, write_text
from lab.bench.progress import summary
from lab.bench.provenance import changes, now, provenance
from lab.bench.shared import Shared

PICTURES = ("figure.png", "figure.pdf", "figure.svg")
OWN = ("checkpoint.pt", "metrics.csv", *PICTURES, "moment_*.pt")  # beside config.yaml


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
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = options.tf32
        self.rows: list[dict[str, float]] = []
        self.step = 0
        self.seconds = 0.0
        self.finished = False
        self.draws: list[Batches | Draws] = []
        self._saved: dict[str, Any] | None = None  # the checkpoint's state
        self._written = float("-inf")  # when metrics.csv was, in seconds
        self._open()
        self.was_finished = self.finished  # before this call

    def batches(self, samples: int, size: int | None = None, order: str = "shuffled") -> Batches:
        """The points of each update; see `Batches`."""
        self.draws.append(Batches(self.options.seed, samples, size, order, self.device))
        return self.draws[-1]  # type: ignore[return-value]

    def generator(self, *use: object) -> torch.Generator:
        """A generator that is seeded anew, by `use`, for every update; it is where --draws says."""
        place = torch.device("cpu") if self.options.draws == "cpu" else self.device
        self.draws.append(Draws(self.options.seed, use, place))
        return self.draws[-1].generator  # type: ignore[union-attr]

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
            state: name -> module, optimiser, or anything else with `state_dict` and
                `load_state_dict` made of tensors, numbers, strings and lists.
            finished: whether the run ends here.
        """
        content = {
            "step": step,
            "seconds": seconds,
            "finished": finished,
            "rows": self.rows,
            "state": {name: copied(part.state_dict()) for name, part in state.items()},
        }
        replace(self.folder / "checkpoint.pt", lambda file: torch.save(content, file))
        self._write_metrics()
        self.step, self.seconds, self.finished = step, seconds, finished
        self._saved = content["state"]
        if finished:
            self._finish()

    def restore(self, state: dict[str, Any]) -> None:
        """Puts the checkpoint's state, if there is one, into the parts of `state`."""
        if self._saved is not None or self.finished:
            restore(self.folder / "checkpoint.pt", self._state(), state)

    def store(self, results: dict[str, Any]) -> None:
        """Puts numbers found in the metrics (steps until an event, say) into config.yaml."""
        self._config["results"] = results
        self._write_config()

    def results(self) -> dict[str, Any]:
        """What `store` has put into config.yaml."""
        return self._config.get("results", {})

    def saved_state(self, name: str) -> dict[str, Any]:
        """The checkpoint's state of one part, on the CPU, for figures that need the network."""
        return self._state()[name]

    def save_figure(self, figure: Any) -> None:
        """Writes the picture, the last file of a run, and says on stderr what came out."""
        write_figure(self.folder / f"figure.{self.options.format}", figure)
        summary(self)

    @property
    def begun_by(self) -> str:
        """The line that a user typed to begin this run."""
        return self._config["provenance"]["command"]

    def _open(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock_file = lock(self.folder)
            for left_over in self.folder.glob("*.tmp"):
                left_over.unlink()
            config = self.folder / "config.yaml"
            if config.exists() and not self.options.overwrite:
                self._continue()
                return
            made_by = provenance(self.device)  # takes a while, and nothing may be lost in it
            if config.exists():  # so that it is a run, and ours to replace
                self._clear()
            elif strangers := sorted({path.name for path in self.folder.iterdir()} - {".lock"}):
                raise UserError(
                    f"{self.folder} holds {strangers[0]} but no config.yaml, so it is not a run; "
                    "choose another --name or --out_dir"
                )
            options = {**vars(self.options), "overwrite": False}
            self._config = {**options, "provenance": made_by}
            self._write_config()
        except OSError as error:
            raise UserError(
                f"--out_dir takes a folder to write to; {self.folder}: {reason(error)}"
            ) from None

    def _clear(self) -> None:
        """Removes what a run writes, and nothing else; config.yaml stays, to be replaced."""
        own = [path for pattern in OWN for path in sorted(self.folder.glob(pattern))]
        for path in own:
            path.unlink()
        names = ", ".join(["config.yaml", *(path.name for path in own)])
        print(f"{self.folder}: --overwrite replaces {names}", file=sys.stderr)

    def _continue(self) -> None:
        self._config = read_config(self.folder)
        ours = self.options.identity()
        if lacking := [f"--{key}" for key in ours if key not in self._config]:
            raise UserError(
                f"{self.folder}/config.yaml lacks {', '.join(lacking)}, without which nobody knows "
                "what the run computed; choose another --name, or give --overwrite to replace it"
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
            if "finished" in self._config["provenance"]:
                self._take_recorded()
            return
        content = read_checkpoint(checkpoint, self.options.steps)
        self.step, self.seconds, self._saved = (content[k] for k in ("step", "seconds", "state"))
        self.rows, self.finished = content["rows"], content["finished"]
        self._write_metrics()
        began_on = self._config["provenance"]["device"].split(",")[0].split(":")[0]
        if not self.finished:
            if began_on != self.device.type:
                raise UserError(
                    f"{self.folder} began on {began_on}; continue it with --device {began_on}, "
                    "or give --overwrite to start afresh"
                )
            before, current = self._config["provenance"], provenance(self.device)
            entry = {"at_step": self.step, **{key: current[key] for key in ("started", "commit")}}
            if other := changes(before, current):
                words = "; ".join(f"{k} {old} there, {new} here" for k, (old, new) in other.items())
                print(
                    f"{self.folder}: warning: not all is as when it began ({words}), so that its "
                    "numbers may not be those of a run in one go",
                    file=sys.stderr,
                )
                entry |= {key: new for key, (_, new) in other.items()}
            before.setdefault("continued", []).append(entry)
            self._write_config()
        elif "finished" not in self._config["provenance"]:  # killed between the last two files
            self._finish()

    def _finish(self) -> None:
        training = {"finished": now(), "training_seconds": round(self.seconds, 2)}
        self._config["provenance"] |= training
        self._write_config()

    def _take_recorded(self) -> None:
        """Of a finished run without a checkpoint there are the measurements alone."""
        self.rows = read_rows(self.folder)
        self.step, self.finished = int(self.rows[-1]["step"]), True
        self.seconds = self._config["provenance"].get("training_seconds", 0.0)

    def _state(self) -> dict[str, Any]:
        if self._saved is None:
            raise UserError(
                f"{self.folder} holds a finished run without its checkpoint, which is needed here; "
                "another --name or --out_dir makes the run anew, --overwrite replaces it"
            )
        return self._saved

    def _write_config(self) -> None:
        text = yaml.safe_dump(self._config, sort_keys=False, allow_unicode=True)
        write_text(self.folder / "config.yaml", text)

    def _write_metrics(self) -> None:
        lines = [",".join(self.rows[0])] if self.rows else []
        for row in self.rows:
            lines.append(",".join(str(int(v)) if k == "step" else repr(v) for k, v in row.items()))
        write_text(self.folder / "metrics.csv", "".join(line + "\n" for line in lines))
        self._written = time.monotonic()
