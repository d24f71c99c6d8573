"""⟂Grad: gradients without their part along the weights (Prieto et al., arXiv 2501.04697).

Rule of the authors' `OrthoGrad`, tensor by tensor.
"""

from __future__ import annotations

import torch

from lab.methods.interface import Method

TINY = 1e-30  # the authors', against a division by zero


class OrthoGrad(Method):
    """g − (⟨w, g⟩ / ‖w‖²) w, brought to the norm of g."""

    @torch.no_grad()
    def filter_gradients(self) -> None:
        """Projects and rescales."""
        for w in self.parameters:
            norm, along = w.grad.norm(), (w * w.grad).sum() / (w.square().sum() + TINY)
            w.grad.sub_(along * w)
            w.grad.mul_(norm / (w.grad.norm() + TINY))
