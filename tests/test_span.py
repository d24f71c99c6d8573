"""The basis of lab/fast/span.py gives the same numbers as the full input space."""

import pytest
import torch

from lab.fast.span import FirstLayer, plain, span

N, M, H, P = 12, 9, 7, 60
draw = torch.Generator().manual_seed(0)
X, OTHERS, W = (torch.randn(k, P, generator=draw, dtype=torch.float64) for k in (N, M, H))


def blocks():
    yield from W.split([2, 30, 28], dim=1)


def test_products_are_those_of_the_full_space():
    points, others, weights, support = span(X, OTHERS, blocks, kept=2)
    assert points.shape == (N, 2 + N + H)
    assert support == 2 + N
    assert points[:, support:].abs().max() == 0
    torch.testing.assert_close(points[:, :2], X[:, :2])
    for a, b, full_a, full_b in (
        (points, points, X, X),
        (points, weights, X, W),
        (weights, weights, W, W),
        (others, weights, OTHERS, W),
        (others, points, OTHERS, X),
    ):
        torch.testing.assert_close(a @ b.T, full_a @ full_b.T, rtol=1e-12, atol=1e-12)


def test_projected_noise_is_standard_normal_on_the_basis():
    # Noise of the full space enters as `others`; its coordinates' covariance must be the identity.
    noise = torch.randn(20_000, P, generator=draw, dtype=torch.float64)
    noise[:, :2] = 0
    coordinates = span(X, noise, blocks, kept=2).others[:, 2:]
    covariance = coordinates.T @ coordinates / len(coordinates)
    error = (covariance - torch.eye(len(covariance))).abs()
    assert error.max() < 5 * (2 / len(coordinates)) ** 0.5


def test_too_few_dimensions_or_dependent_points_fall_back_to_the_plain_ones():
    narrow = span(X[:, :15], OTHERS[:, :15], lambda: W[:, :15].split([2, 13], dim=1), kept=2)
    assert narrow.support == 15
    twice = torch.cat([X, X[:1]])
    assert span(twice, OTHERS, blocks, kept=2).support == P
    torch.testing.assert_close(span(twice, OTHERS, blocks, kept=2).weights, W)


@pytest.mark.parametrize("others", [False, True], ids=["training points", "other points"])
def test_first_layer_is_the_plain_product(others):
    """Values, Jacobian and gradients, whether it multiplies by the weights beyond or not."""
    points, further, weights, support = span(X, OTHERS, blocks, kept=2)
    layer, linear = FirstLayer(weights, support), torch.nn.Linear(P, H, bias=False).double()
    linear.weight = torch.nn.Parameter(weights.clone())
    x = further if others else points
    assert (x[:, support:].abs().max() > 0) == others
    torch.testing.assert_close(layer(x), linear(x))
    head = torch.randn(H, generator=draw, dtype=torch.float64)
    found = []
    for first, parameters in ((layer, [layer.reached, layer.beyond]), (linear, [linear.weight])):
        leaf = x.clone().requires_grad_()
        outputs = first(leaf).relu() @ head
        (rows,) = torch.autograd.grad(outputs.sum(), leaf, create_graph=True)
        of_outputs = torch.autograd.grad(
            outputs.square().sum(), parameters, retain_graph=True, materialize_grads=True
        )
        loss = outputs.square().sum() + rows.norm(dim=1).mean()
        of_both = torch.autograd.grad(loss, parameters)
        found.append((rows, torch.cat(of_outputs, dim=1), torch.cat(of_both, dim=1)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert plain(X, OTHERS, blocks).support == P


@pytest.mark.parametrize("set_to_none", [True, False])
def test_weights_beyond_the_points_decay_like_the_others(set_to_none):
    points, _, weights, support = span(X, OTHERS, blocks, kept=2)
    layer = FirstLayer(weights, support)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimiser.zero_grad(set_to_none=set_to_none)
        layer(points).square().sum().backward()
        optimiser.step()
    torch.testing.assert_close(layer.beyond.detach(), 0.95**3 * weights[:, support:])


def test_zeros_serve_every_update_until_something_was_added_to_them():
    points, others, weights, support = span(X, OTHERS, blocks, kept=2)
    layer = FirstLayer(weights, support)
    layer(points).sum().backward()
    zeros = layer.beyond.grad
    layer.beyond.grad = None
    layer(points).sum().backward()
    assert layer.beyond.grad is zeros
    layer(others).sum().backward()
    assert layer.beyond.grad.abs().max() > 0
    layer.beyond.grad = None
    layer(points).sum().backward()
    assert layer.beyond.grad.abs().max() == 0
