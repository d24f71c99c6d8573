"""Clip to Grok: rows of weights no longer than c (github.com/NiftyliuS/cliptogrok, `norms.py`).

The authors clip after each step, all but the embeddings and the head, with c = 2 and without weight
decay. They also begin with rows of norm c, which is left out here: initial weights belong to the
task.
"""

from __future__ import annotations

import torch

from lab.methods.interface import Knob, Method

TINY = 1e-8  # the authors', against a division by zero


class RowNormClipping(Method):
    """w ← w · min(1, c / ‖w‖) for each row; a vector of biases counts as one."""

    c = Knob(2.0, 0.25, 4.0)

    @torch.no_grad()
    def project_weights(self) -> None:
        """Clips the rows."""
        vectors = [p for p in self.parameters if p.ndim == 1]
        for w in self.task.hidden() + vectors:
            norms = w.norm(dim=-1, keepdim=True).clamp(min=TINY)
            w.mul_(norms.clamp(max=self.c) / norms)
