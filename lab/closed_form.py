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

from lab.models import linear_layers
from utils import JacobianRegulariser

BLOCKS = 3  # a symmetric product costs (1 + 1 / BLOCKS) / 2 of a full one


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
        if regulariser.squared or regulariser.batch_size is not None:
            raise ValueError("the closed form takes the norm itself, of the whole batch at once")
        self.regulariser = regulariser
        self.parameters = [layer.weight for layer in linear_layers(regulariser.model)]

    @torch.no_grad()
    def backward(
        self,
        x: Tensor,
        loss_of: Callable[[Tensor], Tensor],
        weight: float | Callable[[Tensor], Tensor] = 0.0,
        points: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Replaces the parameters' `.grad` by the gradient.

        Args:
            x: (B, D).
            loss_of: outputs (B, C) -> scalar loss.
            weight: of the mean norm; 0 leaves it out. For a penalty that is not proportional to
                the norm its derivative, a function of the mean norm.
            points: how many points, the first of `x`, the norm is averaged over; all when None.

        Returns:
            the loss without the regulariser, and the mean norm (None without it), detached.
        """
        weights = [p.detach() for p in self.parameters]
        batch = len(x)
        part = batch if points is None else points
        k = 0
        if weight:
            k = self.regulariser.num_projections or len(weights[-1])
        # Inputs of every layer but the first: activities above, the norm's co-adjoints below.
        stacks = [x.new_empty(batch + k * part, w.shape[1]) for w in weights[1:]]
        inputs, active = x, []
        for w, stack in zip(weights[:-1], stacks, strict=True):
            inputs = torch.mm(inputs, w.T, out=stack[:batch]).relu_()
            active.append(inputs.sign())
        outputs = inputs @ weights[-1].T
        with torch.enable_grad():
            outputs.requires_grad_()
            loss = loss_of(outputs)
            (adjoint,) = torch.autograd.grad(loss, outputs)
        if k:
            directions = self.regulariser.directions(outputs.detach()[:part])  # (k, m, C)
            adjoint = torch.cat([adjoint, directions.flatten(0, 1)])

        # Row b of the first B is the adjoint of the loss at point b, the others are those of vᵀf.
        adjoints = [adjoint]
        for w, gate in zip(weights[:0:-1], active[::-1], strict=True):
            rows = adjoints[-1] @ w
            rows[:batch] *= gate
            rows[batch:].view(k, part, len(gate.T)).mul_(gate[:part])
            adjoints.append(rows)
        adjoints.reverse()  # one for each layer of weights
        delta, u1 = adjoints[0].split([batch, k * part])

        if not k:
            for p, rows, into in zip(self.parameters, adjoints, [x, *stacks], strict=True):
                p.grad = rows.T @ into
            return loss.detach(), None

        classes = outputs.shape[1]
        co_adjoints = [stack[batch:] for stack in stacks]
        moved = torch.mm(u1, _gram(weights[0]), out=co_adjoints[0])  # G u₁
        squares = (moved * u1).sum(1).view(k, part).sum(0).clamp(min=0) * (classes / k)
        norms = squares.sqrt()
        factor = weight(norms.mean()) if callable(weight) else weight
        # ∂ mean norm / ∂ ‖vᵀJ‖², twice; zero at a zero Jacobian, as vector_norm has it.
        slopes = torch.where(norms > 0, abs(factor) * classes / (k * part) / norms, 0.0)
        slopes = slopes.repeat(k)[:, None]
        # By W₁: Σ slope · u₁ u₁ᵀ W₁. By the others: back up the chain u_l = gate · (u_{l+1} W).
        outer = _gram((slopes.sqrt() * u1).T)
        if callable(weight):  # which may raise the norm instead
            outer *= factor.sign()
            slopes = slopes * factor.sign()
        self.parameters[0].grad = torch.addmm(delta.T @ x, outer, weights[0])
        moved *= slopes
        for layer, (gate, back) in enumerate(zip(active, co_adjoints, strict=True), start=1):
            back.view(k, part, -1).mul_(gate[:part])
            self.parameters[layer].grad = adjoints[layer].T @ stacks[layer - 1]
            if layer < len(active):
                torch.mm(back, weights[layer].T, out=co_adjoints[layer])
        return loss.detach(), norms.mean()


def _gram(w: Tensor) -> Tensor:
    """W Wᵀ (h, h), of which the blocks below the diagonal are copied from those above."""
    gram = w.new_empty(len(w), len(w))
    size = -(-len(w) // BLOCKS)
    for start in range(0, len(w), size):
        end = start + size
        torch.mm(w[start:end], w[start:].T, out=gram[start:end, start:])
        gram[end:, start:end] = gram[start:end, end:].T
    return gram
