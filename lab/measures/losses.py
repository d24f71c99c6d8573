"""Losses, and the share of right answers, of outputs of one number, of classes and of sequences."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lab.bench.precision import double


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean of the softmax's, of outputs (B, positions · classes) and classes (B,) or (B, …)."""
    return functional.cross_entropy(outputs.reshape(y.numel(), -1), y.flatten())


def hinge_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean of max(0, 1 − y f) of outputs (B,) and signs (B,)."""
    return torch.relu(1 - y * outputs).mean()


def accuracy(outputs: Tensor, y: Tensor) -> Tensor:
    """Share of right classes or, for outputs (B,), of right signs; shapes as for the losses."""
    if outputs.ndim == 1:
        return double(outputs.sign() == y).mean()
    return double(outputs.reshape(*y.shape, -1).argmax(-1) == y).mean()
