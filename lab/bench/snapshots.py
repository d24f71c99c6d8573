"""What a run keeps of moments of its training, in its checkpoint: weights, spectra."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab.bench.checkpoints import copied, finished_checkpoint
from lab.bench.errors import UserError


class Moment(NamedTuple):
    """What was kept of one moment."""

    step: int
    """Updates made until then."""
    kept: Any
    """A tensor, or a module's `state_dict`, on the CPU."""


class Snapshots:
    """A part of the training's state, so that what it keeps survives an interruption.

    snapshots = Snapshots()
    snapshots.first("memorised", step, train_accuracy == 1, network)  # in `measure`
    for step in training(run, measure, network=network, snapshots=snapshots): …
    """

    def __init__(self) -> None:
        self.moments: dict[str, Moment] = {}

    def first(self, name: str, step: int, reached: bool | Tensor, what: Any) -> None:
        """Keeps a module's weights, or a tensor, if `reached` holds now and did not before."""
        if reached and name not in self.moments:
            self.keep(name, step, what)

    def keep(self, name: str, step: int, what: Any) -> None:
        """Keeps a module's weights, or a tensor, under a name of its own."""
        state = what if torch.is_tensor(what) else what.state_dict()
        self.moments[name] = Moment(step, copied(state))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {name: moment._asdict() for name, moment in self.moments.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint's `state_dict`."""
        self.moments = {name: Moment(**content) for name, content in state.items()}


def moments_of(folder: str | Path) -> dict[str, Moment]:
    """What a finished run has kept, and "last", the weights of its network at the end.

    From its checkpoint, or from what `lab.bench.record --weights` has copied of it.

    Raises:
        UserError: if the run has no checkpoint, is not finished, or keeps no states.
    """
    folder = Path(folder)
    if copies := sorted(folder.glob("moment_*.pt")):
        read = {path.stem.removeprefix("moment_"): _copied(path) for path in copies}
        return dict(sorted(read.items(), key=lambda each: each[1].step))
    content = finished_checkpoint(folder)
    state = content["state"]
    if "snapshots" not in state:
        raise UserError(f"{folder} keeps no states but the last")
    kept = {name: Moment(**moment) for name, moment in state["snapshots"].items()}
    return {**kept, "last": Moment(content["step"], state["network"])}


def _copied(path: Path) -> Moment:
    try:
        return Moment(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception:  # whatever a damaged file may lead to
        raise UserError(f"{path} is damaged") from None
