"""lab/regions/ against counts, patterns and maps that are known independently."""

import itertools
import math
import os
import shutil
import subprocess
import sys

import numpy
import pytest
import torch
from torch import nn

from helpers import ROOT
from lab.bench.seeds import generator
from lab.networks.mlp import relu_mlp
from lab.regions import (
    Residual,
    SliceError,
    partition,
    plane,
    plane_through,
    radii,
    search,
    square,
)
from utils import Centroids, jacobian


def gaussian(*shape, use):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(0, use))


def mlp_with_biases():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))


def residual_mlp():
    torch.manual_seed(1)
    body = nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 7, bias=False))
    inner = nn.Sequential(nn.Linear(7, 4), nn.LeakyReLU(0.2))
    return nn.Sequential(
        *(nn.Linear(5, 7), nn.ReLU(), Residual(body), nn.LeakyReLU(0.1)),
        *(Residual(inner, nn.Sequential(nn.Linear(7, 4), nn.ReLU())), nn.Linear(4, 2)),
    )


def convolutional():
    torch.manual_seed(2)
    block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
    network = nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), Residual(block), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(12, 3)),
    )
    with torch.no_grad():
        network(torch.randn(20, 1, 4, 4))  # so that the batch normalisation has statistics
    return network.eval()


NETWORKS = {
    "with biases": (mlp_with_biases, (5,)),
    "without biases": (lambda: relu_mlp([5, 9, 8, 3], generator(0)), (5,)),
    "residual": (residual_mlp, (5,)),
    "convolutional": (convolutional, (1, 4, 4)),
}


@pytest.fixture(params=NETWORKS, scope="module")
def found(request):
    """A network, in float64, and its regions on a square of the plane through three points."""
    build, shape = NETWORKS[request.param]
    network = build().double().requires_grad_(False)
    where = plane_through(gaussian(3, *shape, use="points"))
    return network, partition(network, where, square((0.2, -0.1), 1.5))


def pre_activations(network, x):
    """(B, n), in the order of their evaluation, by hooks on the network itself."""
    seen = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        for module in network.modules()
        if isinstance(module, nn.ReLU | nn.LeakyReLU)
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    return torch.cat([part.flatten(1) for part in seen], 1)


def inside(found, region, number, draws):
    """Random points (number, 2) of a region's interior, as convex combinations."""
    corners = found.polygons()[region]
    weights = draws.dirichlet(numpy.ones(len(corners)), number)
    return weights @ corners


def test_regions_tile_the_window(found):
    _, r = found
    assert len(r) > 30
    assert len(set(r.patterns.tolist())) == len(r)
    assert (r.areas() > 0).all()
    assert r.areas().sum() == pytest.approx(9, rel=1e-12)
    draws = numpy.random.default_rng(0)
    points = draws.uniform((-1.3, -1.6), (1.7, 1.4), (200, 2))
    assert all((r.distances(at) > 0).sum() == 1 for at in points)


def test_the_pattern_is_constant_inside_and_each_map_is_the_network(found):
    network, r = found
    draws = numpy.random.default_rng(0)
    for region in range(len(r)):
        at = inside(r, region, 6, draws)
        signs = pre_activations(network, r.plane.points(at)) > 0
        assert (signs == signs[0]).all()
        outputs = network(r.plane.points(at)).numpy()
        expected = numpy.concatenate([at, numpy.ones((6, 1))], 1) @ r.maps[region].T
        assert numpy.abs(outputs - expected).max() < 1e-9


def test_norms_and_centroids_are_those_of_the_networks_own_jacobian(found):
    network, r = found
    centres = numpy.array([polygon.mean(0) for polygon in r.polygons()])
    j = jacobian(network, r.plane.points(centres))
    assert r.frobenius == pytest.approx(torch.linalg.matrix_norm(j).numpy(), rel=1e-9)
    assert r.operator == pytest.approx(torch.linalg.matrix_norm(j, 2).numpy(), rel=1e-7)
    centroids = Centroids(network)(r.plane.points(centres)).centroids.flatten(1)
    torch.testing.assert_close(torch.from_numpy(r.centroids), centroids, rtol=1e-9, atol=1e-12)


def test_neighbours_differ_by_the_units_that_are_zero_on_their_common_side(found):
    network, r = found
    centres = numpy.array([polygon.mean(0) for polygon in r.polygons()])
    signs = pre_activations(network, r.plane.points(centres)) > 0
    owners, middles = [], []
    for region, polygon in enumerate(r.polygons()):
        for a, b in zip(polygon, numpy.roll(polygon, -1, 0), strict=True):
            if numpy.linalg.norm(a - b) > 1e-6:
                owners.append(region)
                middles.append((a + b) / 2)
    apart = numpy.abs(numpy.array(middles)[:, None] - middles).max(2)
    pairs = numpy.argwhere(numpy.triu(apart < 1e-9, 1))
    assert len(pairs) > len(r)
    for a, b in pairs:
        one, other = owners[a], owners[b]
        at_side = pre_activations(network, r.plane.points(middles[a][None]))[0]
        switched = signs[one] != signs[other]
        assert switched.any()
        assert (at_side[switched].abs() < 1e-9).all()
        # A unit all of whose inputs are off is zero on both sides, and switches nowhere.
        still = at_side[~switched]
        assert ((still.abs() > 1e-9) | (still == 0)).all()
        assert r.patterns[one] != r.patterns[other]


@pytest.mark.parametrize("units", [1, 4, 17])
def test_one_hidden_layer_has_as_many_regions_as_the_arrangement_of_its_lines(units):
    torch.manual_seed(units)
    network = nn.Sequential(nn.Linear(2, units), nn.ReLU(), nn.Linear(units, 1)).double()
    network.requires_grad_(False)
    zero = torch.zeros(2, dtype=torch.float64)
    where = plane(zero, *torch.eye(2, dtype=torch.float64))
    crossings = [
        torch.linalg.solve(network[0].weight[[i, j]], -network[0].bias[[i, j]])
        for i, j in itertools.combinations(range(units), 2)
    ]
    everything = 2 * max([10.0, *(float(at.norm()) for at in crossings)])
    r = partition(network, where, square((0, 0), everything))
    assert len(r) == 1 + units + units * (units - 1) // 2
    # In a smaller window: one, and one more for each line and each crossing in it.
    lines = sum(
        1
        for w, b in zip(network[0].weight, network[0].bias, strict=True)
        if b.abs() < w.abs().sum()
    )
    within = sum(1 for at in crossings if at.abs().max() < 1)
    assert len(partition(network, where, square((0, 0), 1.0))) == 1 + lines + within


def test_regions_of_a_layer_are_the_power_diagram_of_its_centroids():
    """Theorem 4: a region is where its own ⟨x, μ⟩ + τ is the largest; of a ReLU layer's sum."""
    torch.manual_seed(3)
    layer = nn.Sequential(nn.Linear(6, 11), nn.ReLU()).double()
    where = plane(*gaussian(3, 6, use="plane"))
    r = partition(layer, where, square((0, 0), 3.0))
    assert len(r) > 20
    centres = where.points(numpy.array([p.mean(0) for p in r.polygons()]))
    mu = torch.from_numpy(r.centroids)
    tau = layer(centres).sum(1) - (centres * mu).sum(1)
    at = numpy.random.default_rng(0).uniform(-3, 3, (500, 2))
    largest = (where.points(at) @ mu.T + tau).argmax(1)
    assert largest.tolist() == [int(r.distances(point).argmax()) for point in at]


def test_a_bias_free_network_has_cones_that_scaling_a_layer_leaves_alone():
    network = relu_mlp([6, 8, 7, 2], generator(4))
    points = gaussian(3, 6, use="points")
    r = partition(network, plane_through(points), square((0, 0), 2.0))
    far = partition(network, plane_through(3 * points), square((0, 0), 6.0))
    with torch.no_grad():
        network[2].weight *= 7
    scaled = partition(network, plane_through(points), square((0, 0), 2.0))
    for other, lengths, slopes in ((far, 3, 1), (scaled, 1, 7)):
        assert other.patterns.tolist() == r.patterns.tolist()
        assert other.areas() == pytest.approx(lengths**2 * r.areas())
        assert other.operator == pytest.approx(slopes * r.operator)


def test_lines_through_one_corner_and_lines_that_coincide():
    """Cones around the origin, four units of which two are copies of the others."""
    weight = torch.tensor([[1.0, 0], [1, 1], [2, 2], [-1, 0]], dtype=torch.float64)
    network = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1)).double()
    network[0].weight.data = weight
    where = plane(torch.zeros(2), torch.tensor([1.0, 0]), torch.tensor([0, 1.0]))
    r = partition(network, where, square((0, 0), 1.0))
    assert sorted(r.areas()) == pytest.approx([0.5, 0.5, 1.5, 1.5])
    assert r.locate((0.5, 0.1))[1] == pytest.approx(0.6 / 2**0.5)  # to s + t = 0


def test_radius_in_the_plane_and_in_all_directions(found):
    network, r = found
    x = gaussian(3, *r.plane.origin.shape, use="points")
    everywhere = radii(network, x)
    signs = pre_activations(network, x) > 0
    draws = gaussian(3000, *x.shape[1:], use="directions")
    draws /= draws.flatten(1).norm(dim=1).reshape(-1, *[1] * (draws.ndim - 1))
    for point, at, radius, sign in zip(x, r.plane.coordinates(x), everywhere, signs, strict=True):
        inner = point + 0.999 * radius * draws
        assert (pre_activations(network, inner) > 0).eq(sign).all()
        values = jacobian(lambda z: pre_activations(network, z), point[None])[0]
        before = pre_activations(network, point[None])[0]
        distances = before.abs() / values.norm(dim=1)
        nearest = distances.nan_to_num(torch.inf).argmin()
        normal = (values[nearest] / values[nearest].norm()).reshape(point.shape)
        across = point - 1.001 * radius * before[nearest].sign() * normal
        assert not (pre_activations(network, across[None]) > 0)[0].eq(sign).all()
        to_edge = 1.5 - abs(at - (0.2, -0.1)).max()
        if to_edge > 0:
            assert r.locate(at)[1] > 0.999 * min(radius, to_edge)


def test_small_blocks_find_the_same(found, monkeypatch):
    network, r = found
    monkeypatch.setattr(search, "BLOCK", 60)
    again = partition(network, r.plane, square((0.2, -0.1), 1.5))
    order, other = r.patterns.argsort(), again.patterns.argsort()
    assert r.patterns[order].tolist() == again.patterns[other].tolist()
    assert r.areas()[order] == pytest.approx(again.areas()[other])


def test_a_network_without_activations_has_one_region():
    r = partition(nn.Linear(4, 2), plane(*gaussian(3, 4, use="plane")), square((0, 0), 1.0))
    assert (len(r), float(r.areas()[0])) == (1, 4.0)


def test_the_limit_of_regions(found):
    network, r = found
    window = square((0.2, -0.1), 1.5)
    assert len(partition(network, r.plane, window, limit=len(r))) == len(r)
    with pytest.raises(SliceError, match=f"holds more than {len(r) - 1} regions"):
        partition(network, r.plane, window, limit=len(r) - 1)


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        (nn.MaxPool2d(2), "not for MaxPool2d"),
        (nn.Tanh(), "not for Tanh"),
        (nn.Dropout(), "not for Dropout"),
        (nn.BatchNorm2d(1), "BatchNorm2d normalises with the statistics of the batch"),
        (nn.BatchNorm2d(1, track_running_stats=False).eval(), "statistics of the batch"),
    ],
)
def test_layers_that_are_refused_are_named(layer, complaint):
    where = plane(*gaussian(3, 1, 4, 4, use="plane"))
    with pytest.raises(ValueError, match=complaint):
        partition(nn.Sequential(nn.Sequential(layer), nn.Flatten()), where, square((0, 0), 1.0))
    with pytest.raises(ValueError, match=complaint):
        radii(Residual(layer), where.origin[None])


@pytest.mark.parametrize("third", [0, 1, 0.25, -3.0])
def test_three_points_on_a_line_or_equal_span_no_plane(third):
    a, b = gaussian(2, 7, use="line")
    with pytest.raises(SliceError, match="three points, that are not on one line"):
        plane_through(torch.stack([a, b, a + third * (b - a)]))
    with pytest.raises(SliceError, match="not on one line"):
        plane(a, b, torch.zeros(7))


def test_what_cannot_be_looked_at_is_refused():
    points = gaussian(4, 5, use="points")
    for few in (points[:2], points):
        with pytest.raises(SliceError, match=f"a plane takes three points, got {len(few)}"):
            plane_through(few)
    with pytest.raises(SliceError, match="not on one line"):
        plane_through(points[:3, :1])  # numbers, which all lie on one
    for half_width in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(SliceError, match=f"half-width above 0, got {half_width}"):
            square((0, 0), half_width)
    where = plane_through(points[:3])
    for call in (lambda f: partition(f, where, square((0, 0), 1.0)), lambda f: radii(f, points)):
        with pytest.raises(ValueError, match="not for function"):
            call(lambda x: x)


def test_a_plane_has_the_distances_of_the_input_and_holds_its_three_points():
    points = gaussian(3, 2, 5, use="points")
    where = plane_through(points)
    at = where.coordinates(points)
    torch.testing.assert_close(where.points(at), points)
    assert numpy.linalg.norm(at[0] - at[1]) == pytest.approx(float((points[0] - points[1]).norm()))
    assert numpy.abs(at.mean(0)).max() < 1e-12


def test_the_folder_works_copied_beside_utils_alone(tmp_path):
    """What README offers: nothing else of this project is there."""
    shutil.copytree(ROOT / "lab/regions", tmp_path / "regions")
    shutil.copy(ROOT / "utils.py", tmp_path)
    code = """
import torch
from regions import SliceError, partition, plane_through, square
from regions.windows import windows
network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
x = torch.randn(3, 4)
r = partition(network, plane_through(x), square((0, 0), 5.0))
print(r.areas().sum().round(9), len(r.operator) == len(r.centroids) == len(r))
print(len(windows(network, x, (0, 1, 2), 1.0)))
try:
    plane_through(x[[0, 0, 1]])
except SliceError:
    print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["100.0", "True", "3", "refused"]
