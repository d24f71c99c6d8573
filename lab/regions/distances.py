"""How far a point is from the boundary of its region, in all directions of the input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils import jacobian

from .layers import advance, frozen_steps, widths_of

BLOCK = 2**24  # gradients of units times inputs that are held together, of 8 bytes


def radii(network: nn.Module, x: Tensor) -> Tensor:
    """Distances (B,) from points to the nearest boundary of their regions, in the whole input.

    A region is where no unit changes sign, so that its boundaries are among the hyperplanes on
    which the units would be zero if the others kept their slopes.

    Args:
        network: of the layers that layers.py lists, which it is refused for otherwise.
        x: (B, *input).
    """
    steps = frozen_steps(network)
    x = x.detach().cpu().double()

    def units(x: Tensor) -> Tensor:  # (B, *input) → (B, n), before their activations
        values, at, before = [x], 0, []
        while (at := advance(steps, at, values)) < len(steps):
            before.append(values[-1].flatten(1))
            values[-1] = steps[at](values[-1].clone())
            at += 1
        return torch.cat(before, 1)

    size = max(1, BLOCK // (sum(widths_of(steps, x[:1])) * x[0].numel()))
    nearest = []
    for part in x.split(size):
        slopes = torch.linalg.vector_norm(jacobian(units, part), dim=2)
        distances = torch.where(slopes > 0, units(part).abs() / slopes, torch.inf)
        nearest.append(distances.min(1).values)
    return torch.cat(nearest)
