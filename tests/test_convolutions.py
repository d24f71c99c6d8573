"""ConvReLU against torch's own two layers."""

import pytest
import torch
from torch import nn

from lab.bench.seeds import generator
from lab.fast.convolutions import ConvReLU
from utils import PC1, Centroids, JacobianRegulariser


def networks(stride, size):
    """The same network with ConvReLU and with torch's layers, float64."""
    ours = nn.Sequential(ConvReLU(2, 4, size), ConvReLU(4, 3, size, stride), nn.Flatten())
    plain = [
        nn.Conv2d(2, 4, size, padding=size // 2, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 3, size, stride, padding=size // 2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
    ]
    for ours_layer, layer in zip(ours[:2], plain[::2], strict=False):
        nn.init.normal_(ours_layer.weight, generator=generator(size))
        layer.load_state_dict(ours_layer.state_dict())
    linear = nn.Linear(3 * (6 // stride) ** 2, 5, bias=False)
    return (nn.Sequential(*layers, linear).double() for layers in (ours, plain))


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_outputs_gradients_and_the_regulariser(stride, size):
    ours, plain = networks(stride, size)
    x = torch.randn(7, 2, 6, 6, dtype=torch.float64, generator=generator(1))
    found, gradients = [], []
    for network in (ours, plain):
        points = x.clone().requires_grad_()
        network(points).square().sum().backward()
        regulariser = JacobianRegulariser(network, 2, generator=generator(2))
        outputs, norm = regulariser.outputs_and_norm(x)
        parameters = list(network.parameters())
        loss = outputs.square().mean() + 3 * norm
        gradients.append([*torch.autograd.grad(loss, parameters), points.grad])
        gradients[-1] += [p.grad for p in parameters]
        found.append((outputs, norm, PC1(network)(x), *Centroids(network)(x)))
    for a, b in zip(found[0] + tuple(gradients[0]), found[1] + tuple(gradients[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    assert all(g.abs().max() > 1e-3 for g in gradients[0])


def test_leaves_the_input_as_it_was():
    ours, _ = networks(2, 3)
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64, generator=generator(1))
    before = x.clone()
    with torch.no_grad():
        without = ours(x)
    assert torch.equal(without, ours(x.requires_grad_()))
    assert torch.equal(x, before)
