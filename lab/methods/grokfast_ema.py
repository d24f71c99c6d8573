"""Grokfast-EMA: λ times the gradients' exponential average on top (Lee et al., arXiv 2405.20233).

Rule and defaults of `gradfilter_ema` in github.com/ironjr/grokfast: α 0.98 and λ 2, for modular
arithmetic; 0.8 and 0.1 for MNIST.
"""

from __future__ import annotations

from typing import Any

from lab.methods.grokfast import Grokfast
from lab.methods.interface import Knob, Method


class GrokfastEMA(Method):
    """μ ← α μ + (1 − α) g, from the first gradient; then g ← g + λ μ."""

    alpha = Knob(0.98, 0.8, 0.99, near_one=True)
    lamb = Knob(2.0, 0.1, 10.0)

    def __init__(self, *given) -> None:
        super().__init__(*given)
        self.filter = Grokfast(self.parameters, self.alpha, self.lamb)

    def filter_gradients(self) -> None:
        """Adds the averages."""
        self.filter()

    def state_dict(self) -> dict[str, Any]:
        """The averages."""
        return self.filter.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the averages back."""
        self.filter.load_state_dict(state)
