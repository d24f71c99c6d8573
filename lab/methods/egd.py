"""Egalitarian gradient descent: all singular values alike (Saheb Pasand and Dohmatob 2025).

arXiv 2510.04930; rule of github.com/asahebpa/Egalitarian-Gradient-Descent, with its floor under
the singular values, on the matrices between embedding and output. As in the authors' comparisons
with Grokfast, Adam makes the step of what comes out; in their main experiments plain gradient
descent does.
"""

from __future__ import annotations

import torch

from lab.bench.errors import TrainingError
from lab.bench.precision import double
from lab.methods.interface import Method

FLOOR = 1e-6


class EGD(Method):
    """G ← (G Gᵀ)^(−1/2) G, which is U Vᵀ for G = U S Vᵀ."""

    @torch.no_grad()
    def filter_gradients(self) -> None:
        """Replaces the matrices' gradients."""
        for matrix in self.task.hidden():
            g = double(matrix.grad)  # since a product with Gᵀ squares the singular values
            wide = len(g) > g.shape[1]
            try:
                squares, vectors = torch.linalg.eigh(g.mT @ g if wide else g @ g.mT)
            except torch.linalg.LinAlgError:
                raise TrainingError("a gradient is not finite") from None
            inverse = vectors / squares.clamp(min=0).sqrt().clamp(min=FLOOR) @ vectors.mT
            matrix.grad.copy_(g @ inverse if wide else inverse @ g)
