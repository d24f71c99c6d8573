"""Accuracy under attack: against worst cases known in closed form, and what it checks."""

import random
import sys

import pyautoattack
import pytest
import torch
from torch import nn

from lab.bench.seeds import generator
from lab.measures.attacks import adversarial_points, under_attack
from lab.networks.mlp import Normalisation, relu_mlp


def linear(classes, pixels, dtype=torch.float32):
    layer = nn.Linear(pixels, classes, bias=False, dtype=dtype)
    nn.init.normal_(layer.weight, generator=generator(classes))
    return layer


def far_from_the_bounds(count, pixels, dtype=torch.float32):
    """Points that no perturbation of 0.1 brings to 0 or 1."""
    x = torch.rand(count, pixels, dtype=torch.float64, generator=generator("points"))
    return (0.4 + 0.2 * x).to(dtype)


def margins(layer, x, y, epsilon):
    """(B,) least margin over the other classes in the worst case: m − ε ‖w_y − w_c‖₁."""
    difference = layer.weight[y][:, None] - layer.weight  # (B, C, D)
    margin = torch.einsum("bcd,bd->bc", difference, x) - epsilon * difference.abs().sum(2)
    return margin.scatter(1, y[:, None], torch.inf).amin(1).detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("attack", "classes"), [("apgd-ce", 2), ("standard", 4)])
def test_worst_case_of_a_linear_model(attack, classes, dtype):
    layer, x = linear(classes, 36, dtype), far_from_the_bounds(24, 36, dtype)
    y = layer(x).argmax(1)
    y[:4] = (y[:4] + 1) % classes  # misclassified
    expected = margins(layer, x, y, 0.02)
    assert expected.abs().min() > 1e-4  # no point is too near to call
    found = under_attack(layer, x, y, attack, 0.02, generator(0))
    assert found.accuracy == (expected > 0).double().mean().item()
    assert 0.2 < found.accuracy < 0.7
    assert found.perturbation == pytest.approx(0.02, abs=1e-6)
    assert found.points.dtype == dtype
    # Where the attack failed, the points are as they were.
    kept = layer(found.points).argmax(1) == y
    torch.testing.assert_close(found.points[kept], x[kept], rtol=0, atol=1e-7)


def test_normalised_images_are_clipped_all_the_same():
    """The official protocol: the worst case is that of a box, cut at 0 and 1."""
    layer, z = linear(2, 36), 2 * torch.randn(200, 36, generator=generator("normalised"))
    y = layer(z).argmax(1)
    y[:30] = 1 - y[:30]  # misclassified, and not attacked
    found = adversarial_points(layer, z, y, "apgd-ce", 0.05, generator(0))
    low, high = (z - 0.05).clamp(0, 1), (z + 0.05).clamp(0, 1)
    against = (layer.weight[1 - y] - layer.weight[y]).detach()
    worst = torch.where(against > 0, high, low)
    expected = (layer(z).argmax(1) == y) & (layer(worst).argmax(1) == y)
    assert torch.equal(layer(found).argmax(1) == y, expected)
    assert 0.2 < expected.double().mean() < 0.7
    assert (found - z).abs().max() > 1  # far more than 0.05


def test_at_least_as_strong_as_one_step():
    network = nn.Sequential(
        Normalisation(0.5, 0.25), relu_mlp([49, 30, 20, 5], generator(0), 2.0).float()
    )
    x = torch.rand(60, 49, generator=generator(1))
    y = network(x).argmax(1)
    points = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(network(points), y), points)
    one_step = (x + 0.03 * slope.sign()).clamp(0, 1)
    bound = (network(one_step).argmax(1) == y).double().mean().item()
    assert 0 < bound < 1
    images = (x.view(60, 1, 7, 7), nn.Sequential(nn.Flatten(), network))
    for points, model in ((x, network), images):
        found = under_attack(model, points, y, "apgd-ce", 0.03, generator(2), batch_size=32)
        assert found.accuracy <= bound
        assert found.points.shape == points.shape
        assert found.points.min() >= 0 and found.points.max() <= 1
        assert 0 < (found.points - points).abs().max() <= 0.03 + 1e-6
    # The same draws for flattened points and images.
    assert found.accuracy == under_attack(network, x, y, "apgd-ce", 0.03, generator(2), 32)[0]


def test_draws_from_its_own_generator_alone():
    network = relu_mlp([49, 60, 60, 5], generator(0), 4.0).float()
    x = torch.rand(20, 49, generator=generator(1))
    y = network(x).argmax(1)

    def attacked(seed):
        return under_attack(network, x, y, "apgd-ce", 0.3, generator(seed)).points

    states = torch.get_rng_state(), random.getstate()
    first = attacked(0)
    assert torch.equal(first, attacked(0))
    assert not torch.equal(first, attacked(1))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert all(p.grad is None for p in network.parameters())


def test_the_trace_function_comes_back():
    layer, x = linear(2, 4), far_from_the_bounds(3, 4)

    def trace(frame, event, argument):
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        under_attack(layer, x, layer(x).argmax(1), "apgd-ce", 0.01, generator(0))
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("scores", [lambda x: x.sum(1), lambda x: x[:, :1]])
def test_scalar_outputs_are_refused(scores):
    x = torch.rand(3, 4)
    with pytest.raises(ValueError, match=r"scores \(B, C\) of two classes or more"):
        under_attack(scores, x, torch.zeros(3, dtype=torch.long), "apgd-ce", 0.1, generator(0))


def test_bad_points_and_classes_are_refused():
    layer, x = linear(3, 4), far_from_the_bounds(3, 4)
    y = layer(x).argmax(1)
    with pytest.raises(ValueError, match=r"raw points in \[0, 1\], got values from -"):
        under_attack(layer, x - 1, y, "apgd-ce", 0.1, generator(0))
    with pytest.raises(ValueError, match="needs 4 classes or more, the model has 3"):
        under_attack(layer, x, y, "standard", 0.1, generator(0))


def test_warnings():
    layer, x = linear(3, 4), far_from_the_bounds(3, 4)
    y = layer(x).argmax(1)
    with pytest.warns(UserWarning, match="epsilon of 4 is larger than 1"):
        under_attack(layer, x, y, "apgd-ce", 4.0, generator(0))
    with pytest.warns(UserWarning, match="no point is classified correctly"):
        found = under_attack(layer, x, (y + 1) % 3, "apgd-ce", 0.1, generator(0))
    assert found.accuracy == 0
    assert torch.equal(found.points, x)


@pytest.mark.parametrize(
    ("shift", "words"), [(0.3, "a pixel was changed by 0.3"), (0.7, r"left \[0, 1\]")]
)
def test_an_attack_that_cheats_is_caught(monkeypatch, shift, words):
    class Cheat(pyautoattack.AutoAttack):
        def run_standard_evaluation(self, x, y, **_):
            return x + shift, y

    monkeypatch.setattr(pyautoattack, "AutoAttack", Cheat)
    layer, x = linear(3, 4), far_from_the_bounds(3, 4)
    with pytest.raises(AssertionError, match=words):
        under_attack(layer, x, layer(x).argmax(1), "apgd-ce", 0.1, generator(0))
