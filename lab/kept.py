"""States of a network at moments of its training, kept in the run's checkpoint beside the last."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab.errors import UserError


class Moment(NamedTuple):
    """A state of a network."""

    step: int
    """Updates made until then."""
    weights: dict[str, Tensor]
    """Its `state_dict`, on the CPU."""


class Kept:
    """A part of `train`'s state, so that what it keeps survives an interruption.

        kept = Kept(network)
        state = {"network": network, "optimiser": optimiser, "kept": kept}
        kept.first("memorised", step, train_accuracy == 1)  # in `measure`

    Args:
        network: the module whose weights are kept.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self.moments: dict[str, Moment] = {}

    def first(self, moment: str, step: int, reached: bool | Tensor) -> None:
        """Keeps the network as it is, if the moment is reached now and was not before."""
        if reached and moment not in self.moments:
            weights = self.network.state_dict()
            self.moments[moment] = Moment(
                step, {name: w.detach().cpu().clone() for name, w in weights.items()}
            )

    def state_dict(self) -> dict[str, Any]:
        return {name: {"step": m.step, "weights": m.weights} for name, m in self.moments.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moments = {name: Moment(**content) for name, content in state.items()}


def kept_moments(folder: str | Path) -> dict[str, Moment]:
    """What a run with a part `kept` has kept, and "last", the state of its network at the end.

    Raises:
        UserError: if the run has no checkpoint, is not finished, or keeps no states.
    """
    path = Path(folder) / "checkpoint.pt"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        kept = {name: Moment(**moment) for name, moment in content["state"]["kept"].items()}
        if not content["finished"]:
            raise UserError(f"{folder} is not finished; its own command continues it")
        return {**kept, "last": Moment(content["step"], content["state"]["network"])}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except KeyError:
        raise UserError(f"{folder} keeps no states but the last") from None
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        raise UserError(f"{path} is damaged") from None
