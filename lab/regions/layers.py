"""Piecewise affine networks layer by layer: a list of steps that acts on a stack of values.

A network is a `Sequential`, nested at will, of `Linear`, `Conv2d`, `AvgPool2d`, `Flatten`,
`Identity`, batch normalisation in eval mode, `ReLU`, `LeakyReLU`, and `Residual` for sums.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

AFFINE = (nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.Flatten, nn.Identity)
NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d)
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU)


class Residual(nn.Module):
    """shortcut(x) + body(x); without a shortcut x + body(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


def run_gated(steps: list[nn.Module | str], x: Tensor, gates: Sequence[Tensor]) -> Tensor:
    """The network with the slopes of its activations held, (P, *input) → (P, C)."""
    values, at = [x], 0
    for gate in gates:
        at = advance(steps, at, values) + 1
        values[-1] = values[-1] * gate
    advance(steps, at, values)
    return values[-1].flatten(1)


def advance(steps: list[nn.Module | str], at: int, values: list[Tensor]) -> int:
    """Applies the steps up to the next activation to the stack of values; returns its index."""
    for index, step in enumerate(steps[at:], start=at):
        if isinstance(step, ACTIVATIONS):
            return index
        if step == "copy":
            values.append(values[-1])
        elif step == "swap":
            values[-1], values[-2] = values[-2], values[-1]
        elif step == "add":
            values.append(values.pop() + values.pop())
        else:
            values[-1] = step(values[-1])
    return len(steps)


def frozen_steps(network: nn.Module) -> list[nn.Module | str]:
    """The steps of a copy in float64 on the CPU that needs no gradients; raises as `steps_of`."""
    steps = list(steps_of(copy.deepcopy(network)))
    for layer in (step for step in steps if isinstance(step, nn.Module)):
        layer.cpu().double().requires_grad_(False)
    return steps


def steps_of(module: nn.Module) -> Iterator[nn.Module | str]:
    """The layers in the order of their application, and what sums do to a stack of values.

    Raises:
        ValueError: if one is not of the kinds above, as a function is not, or normalises with the
            statistics of the batch.
    """
    kind = type(module)
    if kind is nn.Sequential:
        for child in module:
            yield from steps_of(child)
    elif kind is Residual:
        yield "copy"
        yield from steps_of(module.body)
        yield "swap"
        yield from steps_of(module.shortcut)
        yield "add"
    elif kind in NORMALISATIONS and (module.training or module.running_mean is None):
        raise ValueError(
            f"{kind.__name__} normalises with the statistics of the batch, so that the network is "
            "not affine on its regions; call network.eval() first"
        )
    elif kind in (*AFFINE, *NORMALISATIONS, *ACTIVATIONS):
        yield module
    else:
        raise ValueError(
            f"regions are found for a Sequential of {', '.join(k.__name__ for k in AFFINE)}, "
            f"ReLU, LeakyReLU, Residual and batch normalisation, not for {kind.__name__}"
        )


def widths_of(steps: list[nn.Module | str], x: Tensor) -> list[int]:
    """Units of each activation for one input (1, *input)."""
    values, widths, at = [x], [], 0
    while (at := advance(steps, at, values)) < len(steps):
        widths.append(values[-1].numel())
        at += 1
    return widths


def inactive_slope(activation: nn.Module | str) -> float:
    """The slope of an activation below zero; above zero it is 1."""
    return activation.negative_slope if isinstance(activation, nn.LeakyReLU) else 0.0
