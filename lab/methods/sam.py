"""Sharpness-aware minimisation: the gradient at the worst weights nearby (Foret et al. 2021).

arXiv 2010.01412, with AdamW for the step; ρ 0.05 is the default there and in
github.com/davda54/sam. Two gradients an update.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lab.methods.interface import Knob, Method

TINY = 1e-12  # davda54's, against a division by zero


class SAM(Method):
    """∇L(w + ρ g / ‖g‖), ‖g‖ over all parameters together."""

    rho = Knob(0.05, 0.01, 1.0)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The plain loss; its points are kept for the second gradient."""
        self.batch = x, y
        return super().loss(x, y)

    @torch.no_grad()
    def filter_gradients(self) -> None:
        """Climbs, takes the gradient there, and comes back."""
        weights = [w.clone() for w in self.parameters]
        gradients = [w.grad for w in self.parameters]
        norm = torch.stack([g.norm() for g in gradients]).norm()
        torch._foreach_add_(
            self.parameters, torch._foreach_mul(gradients, self.rho / (norm + TINY))
        )
        torch._foreach_zero_(gradients)
        with torch.enable_grad():
            self.loss(*self.batch).backward(inputs=self.parameters)
        torch._foreach_copy_(self.parameters, weights)
