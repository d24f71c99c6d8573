"""Convolutions whose input derivative can itself be differentiated at the cost of one.

And the network of Figures 5 and 6 that is made of them.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d


class ConvReLU(torch.nn.Conv2d):
    """ReLU(W ∗ x): a convolution without bias and the ReLU after it, as two layers compute them.

    GrokAlign differentiates vᵀJ, a chain of transposed convolutions, by the weights. Autograd's
    own rule for that is general and, on a CPU, two to four times slower than it has to be. Here
    vᵀJ is built from `conv_transpose2d`, whose derivatives are ordinary convolutions. First
    derivatives by anything, and derivatives of vᵀJ by weights and v, are those of the two layers;
    others (a Hessian by x, where a ReLU network has none, or one by the weights) are not provided.

    Args:
        inputs: channels of x (B, inputs, H, W).
        outputs: channels of the result (B, outputs, ⌈H / stride⌉, ⌈W / stride⌉).
        size: of the kernel, odd; the border is padded with (size − 1) / 2 zeros.
        stride: 1, or a divisor of H and W.
    """

    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> None:
        super().__init__(inputs, outputs, size, stride, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H / stride, W / stride)."""
        # By the weights through autograd, by x through _ByInput: each is left out where not asked.
        y = conv2d(x.detach(), self.weight, None, self.stride, self.padding)
        return _ReLU.apply(y, _ByInput.apply(x, self, y.shape))


class _ByInput(torch.autograd.Function):
    """Zero, without memory of its own, but with the convolution's derivative by x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: ConvReLU, shape: torch.Size) -> Tensor:
        ctx.weight, ctx.stride, ctx.padding = layer.weight, layer.stride, layer.padding
        return x.new_zeros(()).expand(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        missing = ctx.stride[0] - 1  # rows of x that the stride's last window does not reach
        by_x = conv_transpose2d(gradient, ctx.weight, None, ctx.stride, ctx.padding, missing)
        return by_x, None, None


class _ReLU(torch.autograd.Function):
    """ReLU(y + zero), with the gates as constants."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, zero: Tensor) -> Tensor:
        y = y.relu_()
        ctx.mark_dirty(y)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (y,) = ctx.saved_tensors
        gated = torch.ops.aten.threshold_backward(gradient, y.detach(), 0)
        return gated, gated


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
