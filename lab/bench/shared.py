"""The options of every script."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from lab.bench.errors import UserError
from lab.bench.options import option


@dataclass
class Shared:
    """The options of every script. A script overrides a default by writing the field again."""

    steps: int = option(1000, "updates of the parameters", least=0)
    num_logs: int = option(
        64, "measurements, log-spaced, at most one a step, the first and last included", least=2
    )
    seed: int = option(0, "seed of data, initial weights and every other draw", least=0, most=2**53)
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
    format: str = option("png", "kind of picture", choices=("png", "pdf", "svg"), names_run=False)
    checkpoint_every: float = option(
        30.0, "seconds between checkpoints; 0 for one after every update", least=0, names_run=False
    )
    tf32: bool = option(
        False, "on CUDA, products of float32 with 10 bits of precision", names_run=False
    )
    eager: bool = option(
        False, "on CUDA, launch every update anew, not as a captured CUDA graph", names_run=False
    )
    draws: str = option(
        "device",
        "where a GPU's updates draw random numbers; cpu: the same as on a CPU, but not captured",
        choices=("device", "cpu"),
        names_run=False,
    )
    quiet: bool = option(False, "show neither progress nor what came out", names_run=False)

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
        """The options that decide what a run computes, the script's own first."""
        everything = sorted(dataclasses.fields(self), key=lambda f: f.name in SHARED)
        # Where a GPU's updates draw says nothing on a CPU.
        on_cpu = (self.torch_device().type if self.device == "auto" else self.device) == "cpu"
        also = () if on_cpu else ("draws",)
        decides = [f for f in everything if f.metadata["names_run"] or f.name in also]
        return {f.name: getattr(self, f.name) for f in decides}

    def run_name(self) -> str:
        """What differs from the defaults, `jr=1.0,seed=3`; `default` if nothing does."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        parts = [
            key if value is True else f"{key}={_text(value)}"
            for key, value in self.identity().items()
            if value != defaults[key]
        ]
        name = ",".join(parts) or "default" if self.name is None else self.name
        if name.strip(" .") != name or not name or set(name) & NOT_IN_NAMES:
            raise UserError(
                f"--name takes a folder's name, without {' '.join(sorted(NOT_IN_NAMES))} and "
                f"without a space or a dot at its ends, got {name!r}"
            )
        if len(name.encode()) > LONGEST_NAME:
            raise UserError(f"--name takes at most {LONGEST_NAME} bytes, got {name[:40]}…")
        return name


SHARED = frozenset(Shared.__dataclass_fields__)
LONGEST_NAME = 200  # bytes
NOT_IN_NAMES = frozenset('/\\:|?*"<>')  # on one system or another


def _text(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
