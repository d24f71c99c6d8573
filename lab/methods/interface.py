"""What an accelerator of grokking may change in an update of full-batch training.

    for step in training(run, measure, network=network, optimiser=optimiser, method=method):
        loss = method.loss(x, y)
        optimiser.zero_grad()
        loss.backward(inputs=parameters)
        method.filter_gradients()
        optimiser.step()
        method.project_weights()

A method is a file of this folder with one class that derives from `Method` and overrides what it
changes; its name is the file's. Numbers of its own are `Knob`s of the class, and attributes of
these names in the object.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lab.bench.errors import UserError
from lab.methods.tasks import Task

BETAS = (0.9, 0.98)  # AdamW's in every run, Nanda et al.'s
MOST_KNOBS = 2  # of a method's own, that trials are drawn for


class Knob(NamedTuple):
    """A number that trials are drawn for: its default, and the range, log-uniform."""

    default: float
    """The source's."""
    least: float
    most: float
    whole: bool = False
    near_one: bool = False
    """Whether 1 − value is log-uniform, instead of the value."""

    def at(self, share: float) -> float:
        """The value at a share in [0, 1] of the range, with three significant digits."""
        least, most = (1 - self.least, 1 - self.most) if self.near_one else self[1:3]
        value = float(f"{least * (most / least) ** share:.3g}")
        if self.near_one:
            value = float(f"{1 - value:.3g}")
        return round(value) if self.whole else value


class Method:
    """Plain training with AdamW, and what every method derives from.

    Args:
        task: what is learnt, on the device and in the precision of training.
        knobs: numbers of the method's own, by name; those left out have their defaults.

    Raises:
        UserError: if the method cannot do the task.
    """

    losses: ClassVar[tuple[Callable[[Tensor, Tensor], Tensor], ...] | None] = None
    """The losses of `lab.measures.losses` that the method can do; all of them when None."""

    def __init_subclass__(cls) -> None:
        """Raises UserError if trials cannot be drawn: too many knobs, or a range without one."""
        knobs = cls.knobs()
        if len(knobs) > MOST_KNOBS:
            raise UserError(f"{cls.__module__}: a method takes at most {MOST_KNOBS} knobs")
        for name, knob in knobs.items():
            if not 0 < knob.least <= knob.most < (1 if knob.near_one else math.inf):
                where = "between 0 and 1" if knob.near_one else "above 0"
                got = f"{knob.least:g} to {knob.most:g}"
                raise UserError(f"{cls.__module__}: {name} takes a range {where}, got {got}")

    def __init__(self, task: Task, knobs: dict[str, float]) -> None:
        if self.losses is not None and task.loss not in self.losses:
            takes = " or ".join(words(loss) for loss in self.losses)
            raise UserError(
                f"--method {type(self).__module__.rpartition('.')[2]} takes a --task with the "
                f"{takes}, not with the {words(task.loss)}"
            )
        self.task = task
        self.parameters = list(task.network.parameters())
        for knob, takes in self.knobs().items():
            setattr(self, knob, knobs.get(knob, takes.default))
        self.draws = torch.Generator()
        """Source of all that is random in an update; a run puts its own here."""

    @classmethod
    def knobs(cls) -> dict[str, Knob]:
        """The numbers of the method's own, by name."""
        return {key: value for key, value in vars(cls).items() if isinstance(value, Knob)}

    def optimiser(self, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """What makes the step; the decay is decoupled, in units of the rate."""
        return torch.optim.AdamW(self.parameters, lr, BETAS, weight_decay=weight_decay, fused=True)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The scalar to differentiate, of all training points x and their labels y."""
        return self.task.loss(self.task.outputs(x), y)

    def filter_gradients(self) -> None:
        """Changes the parameters' `.grad` before the step."""

    def project_weights(self) -> None:
        """Changes the parameters after the step."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the method."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""


def words(loss: Callable[..., Tensor]) -> str:
    """What a loss is called in a sentence."""
    return loss.__name__.replace("_", " ")


def methods() -> dict[str, type[Method]]:
    """The classes of all methods, by the names of their files."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("[!_]*.py")):
        module = importlib.import_module(f"{__package__}.{file.stem}")
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and issubclass(value, Method) and value is not Method:
                found[file.stem] = value
    return found
