"""Muon: updates whose singular values are all alike (Jordan et al. 2024).

Claimed to accelerate grokking by Tveit et al. 2025 (arXiv 2504.16041). On the leaderboard it is, as
its author has it, for the matrices between embedding and output; AdamW serves the other parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from lab.bench.errors import UserError
from lab.methods.interface import BETAS, Method


def muon(
    parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """torch's Muon, its updates rescaled to the size of AdamW's, for the same learning rate.

    Args:
        parameters: matrices.
        lr: learning rate.
        weight_decay: decoupled, in units of the rate.

    Raises:
        UserError: if this torch has none.
    """
    if not hasattr(torch.optim, "Muon"):
        raise UserError(
            f"--optimiser or --method muon takes torch 2.9 or newer, not {torch.__version__}"
        )
    return torch.optim.Muon(
        parameters, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )


class Together:
    """Several optimisers as one.

    Args:
        parts: optimisers of different parameters.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    def zero_grad(self) -> None:
        """Drops all gradients."""
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        """Makes the step of each."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)


class Muon(Method):
    """Muon with momentum 0.95 for the hidden matrices, AdamW for the rest."""

    def optimiser(self, lr: float, weight_decay: float) -> Together:
        """Both, with the same rate and decay."""
        hidden = self.task.hidden()
        rest = [p for p in self.parameters if not any(p is matrix for matrix in hidden)]
        others = torch.optim.AdamW(rest, lr, BETAS, weight_decay=weight_decay, fused=True)
        return Together(muon(hidden, lr, weight_decay), others)
