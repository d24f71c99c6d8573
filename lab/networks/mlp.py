"""Networks that several scripts train."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def uniform(*shape: int, fan_in: int, generator: torch.Generator) -> Tensor:
    """Weights in ±1/√fan_in, as torch's Linear draws them; float64 on the CPU."""
    weights = torch.empty(shape, dtype=torch.float64)
    return weights.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)


def relu_mlp(
    widths: Sequence[int], generator: torch.Generator, init_scale: float = 1.0
) -> torch.nn.Sequential:
    """A fully connected ReLU network without biases, float64 on the CPU.

    Args:
        widths: inputs, hidden units of each layer, outputs.
        generator: source of the weights, as `uniform` draws them.
        init_scale: factor on all of them (Liu et al. 2023, Omnigrok).
    """
    layers: list[torch.nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layer = torch.nn.Linear(fan_in, fan_out, bias=False, dtype=torch.float64)
        drawn = uniform(fan_out, fan_in, fan_in=fan_in, generator=generator)
        layer.weight.data = init_scale * drawn
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def relu_mlp_of(weights: dict[str, Tensor]) -> torch.nn.Sequential:
    """The network of `relu_mlp` with the weights of its `state_dict`, in their precision."""
    layers = list(weights.values())
    widths = [layers[0].shape[1], *map(len, layers)]
    network = relu_mlp(widths, torch.Generator()).to(layers[0])
    network.load_state_dict(weights)
    return network


def linear_layers(model: Callable[[Tensor], Tensor]) -> list[torch.nn.Linear]:
    """The layers of a network like `relu_mlp`, the first one first.

    Raises:
        ValueError: unless the model alternates `Linear` layers without biases and `ReLU`s, and
            begins and ends with a `Linear`.
    """
    layers = list(model) if isinstance(model, torch.nn.Sequential) else []
    linear, between = layers[::2], layers[1::2]
    if (
        len(linear) != len(between) + 1
        or len(linear) < 2
        or not all(isinstance(m, torch.nn.Linear) and m.bias is None for m in linear)
        or not all(isinstance(m, torch.nn.ReLU) for m in between)
    ):
        raise ValueError(
            "the closed form takes a Sequential of Linear layers without biases and ReLUs "
            f"between them, got {model}"
        )
    return linear


class Normalisation(torch.nn.Module):
    """(x − mean) / std of raw points, the first layer of a network that is attacked.

    Args:
        mean: of each channel of (B, channels, H, W), or one number for all.
        std: likewise.
    """

    def __init__(self, mean: Sequence[float] | float, std: Sequence[float] | float) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            statistics = torch.as_tensor(values, dtype=torch.float64)
            if statistics.ndim:
                statistics = statistics[:, None, None]
            self.register_buffer(name, statistics)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *input) → (B, *input), in the precision of x."""
        return (x - self.mean.to(x)) / self.std.to(x)
