"""Networks that several scripts train."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch


def relu_mlp(
    widths: Sequence[int], generator: torch.Generator, init_scale: float = 1.0
) -> torch.nn.Sequential:
    """A fully connected ReLU network without biases, float64 on the CPU.

    Args:
        widths: inputs, hidden units of each layer, outputs.
        generator: source of the weights, uniform in ±1/√fan_in as torch's Linear draws them.
        init_scale: factor on all of them (Liu et al. 2023, Omnigrok).
    """
    layers: list[torch.nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layer = torch.nn.Linear(fan_in, fan_out, bias=False, dtype=torch.float64)
        torch.nn.init.uniform_(layer.weight, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
        with torch.no_grad():
            layer.weight *= init_scale
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])
