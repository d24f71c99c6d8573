"""The two-layer network of modular addition."""

from __future__ import annotations

import torch
from torch import Tensor

from lab.networks.mlp import uniform

INITS = ("uniform", "normal")


class ModularMLP(torch.nn.Module):
    """W₂ ReLU(s (W₁ x + b₁)) + b₂, where x is the one-hot vectors of a and b, one after the other.

    A product with one-hot vectors is a sum of two rows of W₁ᵀ, which is looked up instead. Weights
    begin in float64.

    Args:
        p: the modulus; 2p inputs and p outputs.
        width: hidden units.
        alpha: the first layer is multiplied by s = width^(−alpha).
        generator: source of the initial weights, on the CPU.
        init: "uniform" in ±1/√(inputs of the layer), biases too, torch's own choice for linear
            layers; or "normal" with standard deviation 1/√(inputs of the layer), biases zero.
    """

    def __init__(
        self, p: int, width: int, alpha: float, generator: torch.Generator, init: str = "uniform"
    ) -> None:
        super().__init__()

        def drawn(*shape: int, inputs: int) -> torch.nn.Parameter:
            if init == "uniform":
                return torch.nn.Parameter(uniform(*shape, fan_in=inputs, generator=generator))
            weights = torch.zeros(shape, dtype=torch.float64)
            if len(shape) == 2:  # else a bias
                weights.normal_(std=inputs**-0.5, generator=generator)
            return torch.nn.Parameter(weights)

        self.scale = width**-alpha
        self.register_buffer("offsets", torch.tensor([0, p]), persistent=False)
        self.rows = drawn(2 * p, width, inputs=2 * p)  # W₁ᵀ: p rows for a, then p for b
        self.first_bias = drawn(width, inputs=2 * p)
        self.second = drawn(p, width, inputs=width)
        self.second_bias = drawn(p, inputs=width)

    def forward(self, pairs: Tensor) -> Tensor:
        """Logits (B, p) of `pairs` (B, 2)."""
        both = pairs + self.offsets
        return self._head(torch.nn.functional.embedding_bag(both, self.rows, mode="sum"))

    def grid(self) -> Tensor:
        """Logits (p, p, p) of all pairs (a, b), the classes last."""
        of_a, of_b = self.rows.split(len(self.second))
        return self._head(of_a[:, None] + of_b)

    def _head(self, sums: Tensor) -> Tensor:  # W₁ x (…, width) → (…, p)
        hidden = sums + self.first_bias
        if self.scale != 1:  # else a pass over all of them for nothing
            hidden = hidden * self.scale
        return torch.nn.functional.linear(hidden.relu_(), self.second, self.second_bias)
