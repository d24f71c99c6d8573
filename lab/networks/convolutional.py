"""The convolutional network of Figures 5 and 6."""

from __future__ import annotations

import itertools

import torch

from lab.fast.convolutions import ConvReLU


def convolutional_network(
    filters: int, classes: int, generator: torch.Generator
) -> torch.nn.Sequential:
    """Six convolutions and two linear layers without biases, (B, 3, 32, 32) → (B, classes).

    Float32 on the CPU, channels last. All weights follow Kaiming's normal law by fan-out.

    Args:
        filters: channels of the first two convolutions, doubled twice.
        classes: outputs.
        generator: source of the weights.
    """
    widths = [3, filters, 2 * filters, 4 * filters]
    layers: list[torch.nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [ConvReLU(inputs, outputs), ConvReLU(outputs, outputs, stride=2)]
    layers += [torch.nn.AvgPool2d(2), torch.nn.AvgPool2d(2), torch.nn.Flatten()]
    layers += [torch.nn.Linear(widths[-1], 128, bias=False), torch.nn.ReLU()]
    layers += [torch.nn.Linear(128, classes, bias=False)]
    for layer in layers:
        if isinstance(layer, ConvReLU | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(
                layer.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
    return torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)
