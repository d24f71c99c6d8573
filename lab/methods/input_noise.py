"""Gaussian noise on the inputs, less of it once the network has learnt (Tan and Huang 2023).

arXiv 2311.06597; sizes and rule of the paper's comparison, `--adv_training` in the official
accelerating_grokking.py of GrokAlign.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lab.measures.losses import accuracy
from lab.methods.interface import Knob, Method

LARGEST = 0.06


class InputNoise(torch.nn.Module):
    """x + σ ε with ε ~ N(0, 1), σ = largest · max(1 − train accuracy, ½).

    Args:
        like: a tensor of the points' precision and device.
        generator: source of the noise.
        largest: standard deviation before anything is learnt; then half of it remains.
    """

    def __init__(self, like: Tensor, generator: torch.Generator, largest: float = LARGEST) -> None:
        super().__init__()
        self.generator, self.largest = generator, largest
        self.register_buffer("std", torch.tensor(largest).to(like))

    def adapt(self, train_accuracy: Tensor) -> None:
        """Sets σ by the training accuracy, a scalar in [0, 1]."""
        self.std.copy_((self.largest * (1 - train_accuracy)).clamp(min=self.largest / 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, *input) → (B, *input)."""
        place = self.generator.device
        drawn = torch.randn(x.shape, generator=self.generator, dtype=x.dtype, device=place)
        return x + self.std * drawn.to(x.device)


class NoisyInputs(Method):
    """The loss at noisy points: inputs or, of tokens, their embeddings."""

    std = Knob(LARGEST, 0.01, 1.0)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The noise is by the accuracy at the clean points, as in the official code."""
        points = self.task.points(x)
        noise = InputNoise(points.detach(), self.draws, self.std)
        with torch.no_grad():
            noise.adapt(accuracy(self.task.model(points), y))
        return self.task.loss(self.task.model(noise(points)), y)
