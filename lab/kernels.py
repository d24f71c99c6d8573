"""The neural tangent kernel."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


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
