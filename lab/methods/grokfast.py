"""Grokfast: gradients with their slow part amplified (Lee et al. 2024, arXiv 2405.20233)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Grokfast:
    """Adds λ times their exponential average to the gradients (Algorithm 1, Grokfast-EMA).

    To be called between `backward` and the optimiser's step. The average begins with the first
    gradients.

    Args:
        parameters: whose `.grad` is filtered.
        alpha: share of the average that a step keeps.
        lamb: λ, the factor on the average.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], alpha: float = 0.8, lamb: float = 0.1
    ) -> None:
        self.parameters, self.alpha, self.lamb = list(parameters), alpha, lamb
        self.averages: list[Tensor] = []

    @torch.no_grad()
    def __call__(self) -> None:
        gradients = [p.grad for p in self.parameters]
        if not self.averages:
            self.averages = [g.clone() for g in gradients]
        else:
            torch._foreach_lerp_(self.averages, gradients, 1 - self.alpha)
        torch._foreach_add_(gradients, self.averages, alpha=self.lamb)

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"averages": self.averages}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        self.averages = [
            average.to(p) for average, p in zip(state["averages"], self.parameters, strict=False)
        ]
