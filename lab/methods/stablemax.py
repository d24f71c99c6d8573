"""StableMax: a softmax that does not collapse (Prieto et al., arXiv 2501.04697).

Instead of eˣ stands s(x) = x + 1 from zero on and 1 / (1 − x) below, which grows so slowly that no
probability is rounded to one. In float64, as in the authors' main experiments, which have no weight
decay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lab.bench.precision import double
from lab.measures.losses import cross_entropy
from lab.methods.interface import Method

TINY = 1e-30  # the authors', for autograd divides in both branches


class StableMax(Method):
    """The cross-entropy of s(x) / Σ s(x)."""

    losses = (cross_entropy,)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean of −log of the right classes' shares."""
        logits = double(self.task.outputs(x).reshape(y.numel(), -1))
        s = torch.where(logits < 0, 1 / (1 - logits + TINY), logits + 1)
        right = s.gather(1, y.reshape(-1, 1).to(s.device))[:, 0]
        return (s.sum(1).log() - right.log()).mean()
