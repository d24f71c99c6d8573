"""The neural tangent kernel."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from lab.networks.mlp import linear_layers


def kernel_row(model: torch.nn.Module, x: Tensor, others: Tensor) -> Tensor:
    """Θ(x, x') = ⟨∇_θ f(x), ∇_θ f(x')⟩ of one point against many (Jacot et al. 2018).

    One gradient at x, then one forward-mode derivative of the whole batch along it: the
    directional derivative of f(x') along ∇_θ f(x) is the kernel.

    Args:
        model: (B, *input) -> (B,) or (B, 1), differentiable in its parameters.
        x: (*input), the point.
        others: (B, *input), the points against which.

    Returns:
        (B,), detached.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(values: dict[str, Tensor], points: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, (points,)).reshape(len(points))

    gradient = torch.func.grad(lambda values: outputs(values, x[None]).sum())(parameters)
    with warnings.catch_warnings():
        # torch's own first use of its jvp rules; nothing that a caller could do about it.
        warnings.filterwarnings("ignore", r".*torch\.jit\.script.*", FutureWarning)
        _, row = torch.func.jvp(lambda values: outputs(values, others), (parameters,), (gradient,))
    return row.detach()


@torch.no_grad()
def relu_kernel_row(model: torch.nn.Module, x: Tensor, others: Tensor) -> Tensor:
    """`kernel_row` of a ReLU network without biases, in closed form.

    Θ(x, x') = Σ_l ⟨h_{l−1}(x), h_{l−1}(x')⟩ ⟨b_l(x), b_l(x')⟩ with the inputs h_{l−1} of layer l
    and the derivatives b_l of f by what it puts out, since ∂f / ∂W_l = b_l h_{l−1}ᵀ.

    Args:
        model: like `lab.networks.mlp.relu_mlp`, with one output.
        x: (D,), the point.
        others: (B, D), the points against which.

    Returns:
        (B,).

    Raises:
        ValueError: if the model is of another kind.
    """
    weights = [layer.weight for layer in linear_layers(model)]
    if len(weights[-1]) != 1:
        raise ValueError(f"the kernel is that of one output, got {len(weights[-1])}")

    def factors(points: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        inputs = [points]
        for w in weights[:-1]:
            inputs.append((inputs[-1] @ w.T).relu_())
        derivatives = [points.new_ones(len(points), 1)]
        for w, h in zip(weights[:0:-1], inputs[:0:-1], strict=True):
            derivatives.append((derivatives[-1] @ w).mul_(h > 0))
        return inputs, derivatives[::-1]

    layers = zip(*factors(x[None]), *factors(others), strict=True)
    return torch.stack([(h @ hx[0]) * (b @ bx[0]) for hx, bx, h, b in layers]).sum(0)
