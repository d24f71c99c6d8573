"""lab/fast/relu_norm.py against JacobianRegulariser, of which it is the fast form."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from lab.bench.seeds import generator
from lab.fast.relu_norm import ReluRegulariser
from lab.networks.mlp import relu_mlp
from utils import JacobianRegulariser, jacobian


def both(network, projections):
    """The plain and the fast regulariser, which draw the same directions."""
    return [
        kind(network, projections, generator=generator(3))
        for kind in (JacobianRegulariser, ReluRegulariser)
    ]


@pytest.mark.parametrize("widths", [[12, 9, 8, 7, 4], [12, 9, 4]])
@pytest.mark.parametrize("projections", [1, 3, None])
@pytest.mark.parametrize("penalty", [lambda n: 0.7 * n, lambda n: 0.3 * (n - 1e4).abs()])
def test_value_and_gradient_are_those_of_autograd(widths, projections, penalty):
    network = relu_mlp(widths, generator(0), 3.0)
    x = torch.randn(20, 12, dtype=torch.float64, generator=generator(1))
    y = torch.randint(0, 4, (20,), generator=generator(2))
    found = []
    for regulariser in both(network, projections):
        outputs, norm = regulariser.outputs_and_norm(x)
        loss = cross_entropy(outputs, y) + penalty(norm)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        found.append((outputs, norm, *gradients))
    for expected, ours in zip(*found, strict=True):
        assert (ours - expected).abs().max() < 1e-11 * expected.abs().max()


def test_outputs_alone_and_norm_alone_can_be_differentiated():
    network = relu_mlp([12, 9, 8, 4], generator(0), 3.0)
    x = torch.randn(20, 12, dtype=torch.float64, generator=generator(1))
    plain, fast = both(network, 1)
    expected = torch.autograd.grad(plain(x), list(network.parameters()))
    for p, q in zip(
        torch.autograd.grad(fast(x), list(network.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-13)
    expected = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    outputs, _ = fast.outputs_and_norm(x)
    ours = torch.autograd.grad(outputs.square().sum(), list(network.parameters()))
    for p, q in zip(ours, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-13)


def test_dead_points_have_a_zero_gradient():
    network = relu_mlp([5, 6, 3], generator(0))
    x = torch.randn(8, 5, dtype=torch.float64, generator=generator(1))
    x[:3] = 0  # no unit is active: the Jacobian is zero, and so is its gradient
    plain, fast = both(network, None)
    expected = torch.autograd.grad(plain(x), list(network.parameters()))
    norm = fast(x)
    torch.testing.assert_close(norm, torch.linalg.matrix_norm(jacobian(network, x)).mean())
    for p, q in zip(torch.autograd.grad(norm, list(network.parameters())), expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_what_it_has_no_fast_form_for_goes_the_plain_way():
    network = relu_mlp([12, 9, 8, 4], generator(0), 3.0)
    x = torch.randn(20, 12, dtype=torch.float64, generator=generator(1))
    exact = torch.linalg.matrix_norm(jacobian(network, x))
    for named, expected in (
        ({"squared": True}, exact.square().mean()),
        ({"batch_size": 7}, exact.mean()),
    ):
        torch.testing.assert_close(ReluRegulariser(network, None, **named)(x), expected)
    with torch.no_grad():
        norm = ReluRegulariser(network, None)(x)
    assert not norm.requires_grad
    torch.testing.assert_close(norm, exact.mean())
    leaf = x.clone().requires_grad_()
    ReluRegulariser(network, None)(leaf * 1.0).backward()
    assert leaf.grad is not None  # it came out of a graph, and stays connected to it


@pytest.mark.parametrize(
    "model",
    [
        torch.nn.Linear(3, 2, bias=False),
        torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2)),
        torch.nn.Sequential(*[torch.nn.Linear(3, 3, bias=False)] * 3),
    ],
)
def test_other_networks_are_refused(model):
    with pytest.raises(ValueError, match="Linear layers without biases and ReLUs"):
        ReluRegulariser(model)
