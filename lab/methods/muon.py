"""Muon: updates whose singular values are all alike (Jordan et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lab.bench.errors import UserError


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
        raise UserError(f"--optimiser muon takes torch 2.9 or newer, not {torch.__version__}")
    return torch.optim.Muon(
        parameters, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
