"""The gradient of a loss and of the Jacobian's norm for bias-free ReLU networks, by hand.

Such a network is linear around each point, so that both gradients are products of its weights
with the pattern of active units. With u₁ the adjoint of a direction v at the first hidden layer's
inputs, vᵀJ = u₁ᵀ W₁ and ‖vᵀJ‖² = u₁ᵀ (W₁ W₁ᵀ) u₁: the rows of the Jacobian, as wide as the input,
are never formed, and no graph is differentiated twice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from utils import JacobianRegulariser


class ClosedForm:
    """Gradient of loss + weight · mean Frobenius norm of the input Jacobian.

    What `JacobianRegulariser` and `backward` compute, to rounding. The loss is differentiated by
    the outputs alone, by autograd; all else is written out.

    Args:
        regulariser: its model, its projections, drawn in the same order, and its generator. The
            model alternates `Linear` layers without biases and `ReLU`s, and begins and ends with
            a `Linear`; the regulariser is neither squared nor in chunks.

    Raises:
        ValueError: if the model or the regulariser is of another kind.
    """

    def __init__(self, regulariser: JacobianRegulariser) -> None:
        layers = (
            list(regulariser.model) if isinstance(regulariser.model, torch.nn.Sequential) else []
        )
        linear, between = layers[::2], layers[1::2]
        if (
            len(linear) != len(between) + 1
            or len(linear) < 2
            or not all(isinstance(m, torch.nn.Linear) and m.bias is None for m in linear)
            or not all(isinstance(m, torch.nn.ReLU) for m in between)
        ):
            raise ValueError(
                "the closed form takes a Sequential of Linear layers without biases and ReLUs "
                f"between them, got {regulariser.model}"
            )
        if regulariser.squared or regulariser.batch_size is not None:
            raise ValueError("the closed form takes the norm itself, of the whole batch at once")
        self.regulariser = regulariser
        self.parameters = [layer.weight for layer in linear]

    @torch.no_grad()
    def backward(
        self,
        x: Tensor,
        loss_of: Callable[[Tensor], Tensor],
        weight: float = 0.0,
        points: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Replaces the parameters' `.grad` by the gradient.

        Args:
            x: (B, D).
            loss_of: outputs (B, C) -> scalar loss.
            weight: of the mean norm; 0 leaves it out.
            points: how many points, the first of `x`, the norm is averaged over; all when None.

        Returns:
            the loss without the regulariser, and the mean norm (None without it), detached.
        """
        weights = [p.detach() for p in self.parameters]
        hidden, active = [x], []
        for w in weights[:-1]:
            hidden.append(torch.relu(hidden[-1] @ w.T))
            active.append((hidden[-1] > 0).to(x.dtype))
        outputs = hidden[-1] @ weights[-1].T
        with torch.enable_grad():
            outputs.requires_grad_()
            loss = loss_of(outputs)
            (adjoint,) = torch.autograd.grad(loss, outputs)
        batch = len(x)
        part = batch if points is None else points
        directions = None
        if weight:
            directions = self.regulariser._directions(outputs.detach()[:part])  # (k, m, C)
            adjoint = torch.cat([adjoint, directions.flatten(0, 1)])

        def gated(rows: Tensor, gate: Tensor) -> Tensor:
            """Adjoints (B + k m, h) of units to those of their inputs, in place."""
            rows[:batch] *= gate
            if directions is not None:
                rows[batch:].view(len(directions), part, -1).mul_(gate[:part])
            return rows

        # Row b of the first B is the adjoint of the loss at point b, the others are those of vᵀf.
        adjoints = [adjoint]
        for w, gate in zip(weights[:0:-1], active[::-1], strict=True):
            adjoints.append(gated(adjoints[-1] @ w, gate))
        adjoints.reverse()  # one for each layer of weights

        first = adjoints[0]
        if directions is None:
            for p, rows, inputs in zip(self.parameters, adjoints, hidden, strict=True):
                p.grad = rows.T @ inputs
            return loss.detach(), None

        w1, u1 = weights[0], first[batch:]
        k, classes = len(directions), outputs.shape[1]
        moved = u1 @ (w1 @ w1.T)  # G u₁
        squares = (moved * u1).sum(1).view(k, part).sum(0).clamp(min=0) * (classes / k)
        norms = squares.sqrt()
        # ∂ mean norm / ∂ ‖vᵀJ‖² times two; zero at a zero Jacobian, as vector_norm has it.
        slopes = torch.where(norms > 0, weight * classes / (k * part) / norms, 0.0)
        slopes = slopes.repeat(k)[:, None]
        # By W₁: Σ slope · u₁ u₁ᵀ W₁. By the others: back up the chain u_l = gate · (u_{l+1} W).
        outer = u1.T @ (slopes * u1)
        self.parameters[0].grad = torch.addmm(outer @ w1, first[:batch].T, x)
        back = moved.mul_(slopes)
        for layer, gate in enumerate(active, start=1):
            back.view(k, part, -1).mul_(gate[:part])
            rows = adjoints[layer]
            self.parameters[layer].grad = rows.T @ torch.cat([hidden[layer], back])
            if layer < len(active):
                back = back @ weights[layer].T
        return loss.detach(), norms.mean()
