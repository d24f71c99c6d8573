"""`JacobianRegulariser` of a bias-free ReLU network, its derivative written out.

Such a network is linear around each point, so that the gradient of ‖vᵀJ‖ is products of its weights
with the pattern of active units. With u₁ the adjoint of a direction v at the first hidden layer's
inputs, vᵀJ = u₁ᵀ W₁ and ‖vᵀJ‖² = u₁ᵀ (W₁ W₁ᵀ) u₁: the rows of the Jacobian, as wide as the input,
are never formed, and no graph is differentiated twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lab.networks.mlp import linear_layers
from utils import JacobianRegulariser

BLOCKS = 3  # a symmetric product costs (1 + 1 / BLOCKS) / 2 of a full one


class ReluRegulariser(JacobianRegulariser):
    """What `JacobianRegulariser` gives for such a network, value and gradient to rounding.

    Points that need a gradient themselves, squared norms and chunks go the plain way.

    Args:
        model: alternates `Linear` layers without biases and `ReLU`s, begins and ends with a
            `Linear`.
        others: as for `JacobianRegulariser`.

    Raises:
        ValueError: if the model is of another kind.
    """

    def __init__(self, model: torch.nn.Module, *others: Any, **named: Any) -> None:
        super().__init__(model, *others, **named)
        self.layers = linear_layers(model)

    def outputs_and_norm(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (B, C) and the scalar mean norm of `x` (B, D), differentiable in the weights."""
        plain = self.squared or self.batch_size is not None or x.requires_grad
        if plain or not torch.is_grad_enabled():
            return super().outputs_and_norm(x)
        return _OutputsAndNorm.apply(x, self.directions, *(layer.weight for layer in self.layers))


class _OutputsAndNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, directions: Callable[[Tensor], Tensor], *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs, gates = [x], []
        for w in weights[:-1]:
            inputs.append((inputs[-1] @ w.mT).relu_())
            gates.append(inputs[-1].sign())
        outputs = inputs[-1] @ weights[-1].mT
        adjoints = [directions(outputs)]  # of vᵀf, (k, B, …), by what each layer puts out
        for w, gate in zip(weights[:0:-1], gates[::-1], strict=True):
            adjoints.append((adjoints[-1] @ w).mul_(gate))
        adjoints.reverse()
        moved = adjoints[0] @ _gram(weights[0])  # G u₁
        ctx.scale = outputs.shape[1] / len(adjoints[0])
        squares = (moved * adjoints[0]).sum(2).sum(0).clamp(min=0)
        norms = (ctx.scale * squares).sqrt()
        ctx.save_for_backward(moved, norms, *weights, *inputs, *gates, *adjoints)
        return outputs, norms.mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_outputs: Tensor, by_norm: Tensor) -> tuple[Tensor | None, ...]:
        moved, norms, *rest = ctx.saved_tensors
        n = (len(rest) + 1) // 4
        weights, inputs, gates, adjoints = (
            rest[:n], rest[n : 2 * n], rest[2 * n : 3 * n - 1], rest[3 * n - 1 :]
        )  # fmt: skip
        # ∂ mean norm / ∂ ‖vᵀJ‖², twice; zero at a zero Jacobian, as vector_norm has it.
        slopes = torch.where(norms > 0, by_norm * ctx.scale / (len(norms) * norms), 0.0)[:, None]
        delta, back = by_outputs, moved * slopes
        by_loss = []  # the last layer's first
        for layer in reversed(range(n)):
            by_loss.append((delta, inputs[layer]))
            if layer:
                delta = (delta @ weights[layer]).mul_(gates[layer - 1])
        # By W₁: Σ slope · u₁ u₁ᵀ W₁. By the others: back up the chain u_l = gate · (u_{l+1} W).
        first, u1 = by_loss.pop(), adjoints[0].flatten(0, 1)
        outer = (slopes * adjoints[0]).flatten(0, 1).mT @ u1
        gradients = [torch.addmm(first[0].mT @ first[1], outer, weights[0])]
        for layer in range(1, n):
            back = back * gates[layer - 1]
            rows, into = by_loss.pop()
            own = rows.mT @ into
            gradients.append(own.addmm_(adjoints[layer].flatten(0, 1).mT, back.flatten(0, 1)))
            if layer + 1 < n:
                back = back @ weights[layer].mT
        return None, None, *gradients


def _gram(w: Tensor) -> Tensor:
    """W Wᵀ (h, h), of which the blocks below the diagonal are copied from those above."""
    h = len(w)
    gram = w.new_empty(h, h)
    size = -(-h // BLOCKS)
    for start in range(0, h, size):
        rest = w[start:].mT
        torch.matmul(w[start : start + size], rest, out=gram[start : start + size, start:])
        gram[start + size :, start : start + size] = gram[start : start + size, start + size :].mT
    return gram
