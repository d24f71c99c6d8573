"""Grokfast-MA: λ times the mean of the last gradients on top (Lee et al., arXiv 2405.20233).

Rule and defaults of `gradfilter_ma` in github.com/ironjr/grokfast: window 100 and λ 5, and nothing
is added until the window is full.
"""

from __future__ import annotations

from typing import Any

import torch

from lab.methods.interface import Knob, Method


class GrokfastMA(Method):
    """g ← g + λ · mean of the last `window` gradients, this one among them."""

    window = Knob(100, 10, 200, whole=True)
    lamb = Knob(5.0, 0.1, 10.0)

    def __init__(self, *given) -> None:
        super().__init__(*given)
        size = sum(p.numel() for p in self.parameters)
        self.seen = 0
        self.last = self.parameters[0].new_zeros(self.window, size)
        """The last gradients, a row each; not a running sum, whose rounding errors would outlast
        the large gradients of the beginning."""

    @torch.no_grad()
    def filter_gradients(self) -> None:
        """Keeps the gradients and adds the mean."""
        gradients = [p.grad for p in self.parameters]
        torch.cat([g.flatten() for g in gradients], out=self.last[self.seen % self.window])
        self.seen += 1
        if self.seen >= self.window:
            means = self.last.mean(0).split([g.numel() for g in gradients])
            for g, mean in zip(gradients, means, strict=True):
                g.add_(mean.view_as(g), alpha=self.lamb)

    def state_dict(self) -> dict[str, Any]:
        """The last gradients, and how many there were."""
        return {"seen": self.seen, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        self.seen, self.last = state["seen"], state["last"].to(self.last)
