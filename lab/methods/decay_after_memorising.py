"""Delayed compression: squared norms in the loss once the network has memorised (vuciv/grokfast).

Rule and default of that fork's README: at a training accuracy of 0.99 or more the loss gains
0.01 · Σ ‖W‖_F² over all matrices.
"""

from __future__ import annotations

from torch import Tensor

from lab.measures.losses import accuracy
from lab.methods.interface import Knob, Method

MEMORISED = 0.99


class DecayAfterMemorising(Method):
    """loss + λ Σ ‖W‖_F² while the training accuracy is at least 0.99."""

    lamb = Knob(1e-2, 1e-5, 1e-1)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss, and the norms if it is time."""
        outputs = self.task.outputs(x)
        loss = self.task.loss(outputs, y)
        if accuracy(outputs, y) >= MEMORISED:
            loss = loss + self.lamb * sum(w.square().sum() for w in self.parameters if w.ndim == 2)
        return loss
