"""Gaussian noise on the inputs, less of it once the network has learnt (Tan and Huang 2023)."""

from __future__ import annotations

import torch
from torch import Tensor


class InputNoise(torch.nn.Module):
    """x + σ ε with ε ~ N(0, 1), σ = max(0.06 (1 − train accuracy), 0.03).

    Args:
        like: a tensor of the points' precision and device.
        generator: source of the noise.
    """

    def __init__(self, like: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        self.register_buffer("std", torch.tensor(0.06).to(like))

    def adapt(self, train_accuracy: Tensor) -> None:
        """Sets σ by the training accuracy, a scalar in [0, 1]."""
        self.std.copy_((0.06 * (1 - train_accuracy)).clamp(min=0.03))

    def forward(self, x: Tensor) -> Tensor:
        """(B, *input) → (B, *input)."""
        drawn = torch.randn(x.shape, generator=self.generator, dtype=x.dtype, device=x.device)
        return x + self.std * drawn
