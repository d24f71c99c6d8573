"""GrokAlign: the mean norm of the Jacobian as a term of the loss (Walker et al., arXiv 2506.12284).

The paper: λ_Jac 1e-3 with the cross-entropy, 1e-4 with the mean-squared error, 1 on XOR clusters.
"""

from __future__ import annotations

from torch import Tensor

from lab.methods.interface import Knob, Method
from utils import JacobianRegulariser


class GrokAlign(Method):
    """loss + λ · mean ‖J‖_F, estimated with one random direction a point."""

    jr = Knob(1e-3, 1e-4, 1.0)

    def __init__(self, *given) -> None:
        super().__init__(*given)
        self.regulariser = JacobianRegulariser(self.task.model)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss and the norm, from one forward pass."""
        self.regulariser.generator = self.draws
        outputs, norm = self.regulariser.outputs_and_norm(self.task.points(x))
        return self.task.loss(outputs, y) + self.jr * norm
