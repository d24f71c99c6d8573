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

    Several networks of one shape, replicas that differ in their seed, are done in one pass, by
    batched products. Their weights then become parts of one tensor a layer: move the networks to
    their device before, not after.

    Args:
        regularisers: one a network: its model, its projections, drawn in the same order, and its
            generator. The model alternates `Linear` layers without biases and `ReLU`s, and begins
            and ends with a `Linear`; the regularisers are neither squared nor in chunks and have
            the same number of projections.

    Raises:
        ValueError: if a model or a regulariser is of another kind.
    """

    def __init__(self, *regularisers: JacobianRegulariser) -> None:
        if any(r.squared or r.batch_size is not None for r in regularisers):
            raise ValueError("the closed form takes the norm itself, of the whole batch at once")
        if len({r.num_projections for r in regularisers}) != 1:
            raise ValueError("the closed form takes one number of projections for all networks")
        self.regularisers = regularisers
        networks = [linear_layers(r.model) for r in regularisers]
        self.layers = list(zip(*networks, strict=True))  # for each layer, that of each network
        self.stacked: list[Tensor] = []  # for each layer, (R, out, in)
        if len(regularisers) > 1:
            self.stacked = [torch.stack([m.weight.detach() for m in ms]) for ms in self.layers]
            for layers, stack in zip(self.layers, self.stacked, strict=True):
                for layer, part in zip(layers, stack, strict=True):
                    layer.weight.data = part  # a view, so that what moves one moves the other

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
            x: (B, D); for R networks, or for one as if there were several, (R, B, D).
            loss_of: outputs (B, C) -> scalar loss; for R networks (R, B, C) -> (R,).
            weight: of the mean norm; 0 leaves it out. For a penalty that is not proportional to
                the norm its derivative, a function of the mean norm.
            points: how many points, the first of `x`, the norm is averaged over; all when None.

        Returns:
            the loss without the regulariser, and the mean norm (None without it), detached; for R
            networks both are (R,).
        """
        if x.ndim == 3 and not self.stacked:  # plain products are faster than batches of one
            (only,) = x
            loss, norm = self.backward(only, lambda f: loss_of(f[None])[0], weight, points)
            return loss[None], None if norm is None else norm[None]
        weights = self.stacked or [layers[0].weight.detach() for layers in self.layers]
        replicas, (batch, _) = x.shape[:-2], x.shape[-2:]
        part = batch if points is None else points
        k = 0
        if weight:
            k = self.regularisers[0].num_projections or weights[-1].shape[-2]
        # Inputs of every layer but the first: activities above, the norm's co-adjoints below.
        stacks = [x.new_empty(*replicas, batch + k * part, w.shape[-1]) for w in weights[1:]]
        inputs, active = x, []
        for w, stack in zip(weights[:-1], stacks, strict=True):
            inputs = torch.matmul(inputs, w.mT, out=stack[..., :batch, :]).relu_()
            active.append(inputs.sign())
        outputs = inputs @ weights[-1].mT
        with torch.enable_grad():
            outputs.requires_grad_()
            loss = loss_of(outputs)
            (adjoint,) = torch.autograd.grad(loss.sum(), outputs)
        if k:
            adjoint = torch.cat([adjoint, self._directions(outputs.detach(), part)], dim=-2)

        # Row b of the first B is the adjoint of the loss at point b, the others are those of vᵀf.
        adjoints = [adjoint]
        for w, gate in zip(weights[:0:-1], active[::-1], strict=True):
            rows = adjoints[-1] @ w
            rows[..., :batch, :] *= gate
            _each_direction(rows, batch, k, part).mul_(gate[..., None, :part, :])
            adjoints.append(rows)
        adjoints.reverse()  # one for each layer of weights
        delta, u1 = adjoints[0].split([batch, k * part], dim=-2)

        if not k:
            for layer, (rows, into) in enumerate(zip(adjoints, [x, *stacks], strict=True)):
                self._set_gradient(layer, rows.mT @ into)
            return loss.detach(), None

        classes = outputs.shape[-1]
        co_adjoints = [stack[..., batch:, :] for stack in stacks]
        moved = torch.matmul(u1, _gram(weights[0]), out=co_adjoints[0])  # G u₁
        squares = (moved * u1).sum(-1).unflatten(-1, (k, part)).sum(-2).clamp(min=0)
        norms = (squares * (classes / k)).sqrt()
        factor = weight(norms.mean(-1))[..., None] if callable(weight) else weight
        # ∂ mean norm / ∂ ‖vᵀJ‖², twice; zero at a zero Jacobian, as vector_norm has it.
        slopes = torch.where(norms > 0, abs(factor) * classes / (k * part) / norms, 0.0)
        slopes = torch.cat([slopes] * k, dim=-1)[..., None]
        # By W₁: Σ slope · u₁ u₁ᵀ W₁. By the others: back up the chain u_l = gate · (u_{l+1} W).
        outer = _gram((slopes.sqrt() * u1).mT)
        if callable(weight):  # which may raise the norm instead
            outer *= factor.sign()[..., None]
            slopes = slopes * factor.sign()[..., None]
        add_product = torch.baddbmm if replicas else torch.addmm
        self._set_gradient(0, add_product(delta.mT @ x, outer, weights[0]))
        moved *= slopes
        for layer, (gate, back) in enumerate(zip(active, co_adjoints, strict=True), start=1):
            _each_direction(back, 0, k, part).mul_(gate[..., None, :part, :])
            self._set_gradient(layer, adjoints[layer].mT @ stacks[layer - 1])
            if layer < len(active):
                torch.matmul(back, weights[layer].mT, out=co_adjoints[layer])
        return loss.detach(), norms.mean(-1)

    def _directions(self, outputs: Tensor, part: int) -> Tensor:
        """Directions (…, k · part, C) at the first points, those of each network its own."""
        if outputs.ndim == 2:
            return self.regularisers[0].directions(outputs[:part]).flatten(0, 1)
        drawn = [
            regulariser.directions(of_one[:part]).flatten(0, 1)
            for regulariser, of_one in zip(self.regularisers, outputs, strict=True)
        ]
        return torch.stack(drawn)

    def _set_gradient(self, layer: int, gradient: Tensor) -> None:
        each = gradient if gradient.ndim == 3 else gradient[None]
        for module, part in zip(self.layers[layer], each, strict=True):
            module.weight.grad = part


def _each_direction(rows: Tensor, first: int, k: int, part: int) -> Tensor:
    """The rows (…, k, part, width) from row `first` on, direction by direction: a view."""
    return rows[..., first:, :].unflatten(-2, (k, part))


def _gram(w: Tensor) -> Tensor:
    """W Wᵀ (…, h, h), of which the blocks below the diagonal are copied from those above."""
    h = w.shape[-2]
    gram = w.new_empty(*w.shape[:-2], h, h)
    size = -(-h // BLOCKS)
    for start in range(0, h, size):
        end = start + size
        rest = w[..., start:, :].mT
        torch.matmul(w[..., start:end, :], rest, out=gram[..., start:end, start:])
        gram[..., end:, start:end] = gram[..., start:end, end:].mT
    return gram
