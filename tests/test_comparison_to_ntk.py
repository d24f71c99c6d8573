"""comparison_to_ntk.py as users run it, its kernel against per-sample gradients."""

import signal
from pathlib import Path

import numpy
import pytest
import torch
import yaml

import comparison_to_ntk
from helpers import interrupt, run
from lab import images
from lab.images import ImageOptions
from lab.kernels import kernel_row, relu_kernel_row
from lab.models import TwoLayerEnsemble, relu_mlp
from lab.runs import read_metrics
from lab.seeds import generator
from utils import Centroids

TINY = ("--dataset", "digits", "--points", 60, "--width", 8)
COLUMNS = (
    "step,loss,test_loss,train_accuracy,test_accuracy,ntk_mean,inner_product_of_point,inner_product_rate,"
    "inner_product_difference,alignment_of_point,centroid_norm_of_point,centroid_norm_official_of_point"
)


def main(*words):
    return comparison_to_ntk.main([str(word) for word in words])


def test_the_command_users_type_also_after_a_kill(tmp_path):
    words = (*TINY, "--steps", 300, "--checkpoint_every", 0)
    cut = tmp_path / "runs/comparison_to_ntk/cut"
    killed = interrupt(
        *("comparison_to_ntk.py", *words, "--name", "cut"),
        folder=tmp_path, run_folder=cut, rows=12, signal=signal.SIGKILL,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    done = run("comparison_to_ntk.py", *words, "--name", "cut", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing after" in done.stderr
    assert done.stdout.splitlines()[-1] == "runs/comparison_to_ntk/cut"
    assert (cut / "figure.png").read_bytes().startswith(b"\x89PNG")
    lines = (cut / "metrics.csv").read_text().splitlines()
    assert lines[0] == COLUMNS
    assert lines[-1].startswith("300,")
    assert main(*words, "--name", "whole") == 0
    assert (cut.parent / "whole/metrics.csv").read_bytes() == (cut / "metrics.csv").read_bytes()


@pytest.mark.parametrize("output_scale", [1.0, 3.0])
def test_rate_is_the_measured_change(output_scale):
    assert main(*TINY, "--steps", 60, "--lr", 1e-3, "--output_scale", output_scale) == 0
    (folder,) = Path("runs/comparison_to_ntk").iterdir()
    m = read_metrics(folder)
    # The official centroid is that of the network without its output scale.
    official = m["centroid_norm_official_of_point"]
    numpy.testing.assert_allclose(m["centroid_norm_of_point"], output_scale * official, rtol=1e-9)
    x, y, *_ = images.load(
        ImageOptions(dataset="digits", points=60, dtype="float64"), classes=(0, 1)
    )
    layers = comparison_to_ntk.Network(comparison_to_ntk.Options(width=8), x.shape[1]).layers
    point = x[int((y == 1).nonzero()[0])][None]
    assert official[0] == pytest.approx(Centroids(lambda z: layers(z)[:, 0])(point).norms.item())
    numpy.testing.assert_allclose(m["inner_product_rate"], m["inner_product_difference"], rtol=0.02)
    # Consecutive rows of consecutive steps: the difference is what the next update then made.
    steps = [int(step) for step in m["step"]]
    for i in range(len(steps) - 1):
        if steps[i + 1] == steps[i] + 1:
            change = m["inner_product_of_point"][i + 1] - m["inner_product_of_point"][i]
            assert m["inner_product_difference"][i] == pytest.approx(change, rel=1e-9)


@pytest.mark.parametrize("depth", [2, 3])
def test_kernel_row_against_per_sample_gradients(depth):
    network = relu_mlp([6, *[9] * (depth - 1), 1], generator(0))
    x = torch.randn(7, 6, generator=generator(1), dtype=torch.float64)

    def gradient(point):
        found = torch.autograd.grad(network(point[None]).sum(), list(network.parameters()))
        return torch.cat([g.flatten() for g in found])

    expected = torch.stack([gradient(point) @ gradient(x[2]) for point in x])
    torch.testing.assert_close(kernel_row(network, x[2], x), expected)
    torch.testing.assert_close(relu_kernel_row(network, x[2], x), expected)
    assert all(p.grad is None for p in network.parameters())


def test_the_kernel_of_the_figure_holds_the_output_scale():
    options = comparison_to_ntk.Options(width=9, init_scale=2.0, output_scale=0.3)
    network = comparison_to_ntk.Network(options, 6)
    x = torch.randn(7, 6, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(network.kernel(x[2], x), kernel_row(network, x[2], x))


def test_the_closed_form_refuses_other_networks():
    x = torch.zeros(3, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="one output"):
        relu_kernel_row(relu_mlp([6, 4, 2], generator(0)), x[0], x)
    with pytest.raises(ValueError, match="without biases"):
        relu_kernel_row(torch.nn.Linear(6, 1).double(), x[0], x)


def test_networks_trained_together_are_those_trained_alone():
    x = torch.randn(20, 6, generator=generator(1), dtype=torch.float64)
    y = (x[:, 0] > 0).double()
    alone = [relu_mlp([6, 5, 1], generator(seed), 2.0) for seed in range(3)]
    scales = (0.5, 1.0, 4.0)
    together = TwoLayerEnsemble(
        [(n[0].weight, n[2].weight[0], s) for n, s in zip(alone, scales, strict=True)]
    )
    torch.testing.assert_close(
        together(x), torch.stack([s * n(x)[:, 0] for n, s in zip(alone, scales, strict=True)], 1)
    )
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    optimiser = torch.optim.SGD(together.parameters(), lr=0.3)
    for _ in range(5):
        optimiser.zero_grad()
        (loss(together(x), y[:, None].expand(-1, 3), reduction="sum") / len(x)).backward()
        optimiser.step()
    for r, (network, scale) in enumerate(zip(alone, scales, strict=True)):
        optimiser = torch.optim.SGD(network.parameters(), lr=0.3)
        for _ in range(5):
            optimiser.zero_grad()
            loss(scale * network(x)[:, 0], y).backward()
            optimiser.step()
        torch.testing.assert_close(together.member(r)(x), scale * network(x)[:, 0])


def test_scaling_draws_the_grid():
    assert main(*TINY, "--scaling", "--scaling_seeds", 1, "--steps", 5) == 0
    (folder,) = Path("runs/comparison_to_ntk").iterdir()
    assert (folder / "figure.png").exists()
    networks = yaml.safe_load((folder / "config.yaml").read_text())["results"]["networks"]
    assert len(networks) == 25
    metrics = read_metrics(folder)
    for network, column in zip(networks, list(metrics)[1:], strict=True):
        assert f"init_scale={network['init_scale']} " in column
        assert network["max_alignment"] == metrics[column].max()
    x = images.load(ImageOptions(dataset="digits", points=60, dtype="float64"), classes=(0, 1)).x
    for network in networks[:5]:  # official: without the output scale, which is 0.25 to 4 here
        options = comparison_to_ntk.Options(
            width=8, init_scale=network["init_scale"], output_scale=network["output_scale"]
        )
        layers = comparison_to_ntk.Network(options, x.shape[1]).layers
        norms = Centroids(lambda z, layers=layers: layers(z)[:, 0])(x).norms
        expected = norms.reciprocal().mean().item()
        assert network["reciprocal_norm_official"] == pytest.approx(expected)
        assert network["reciprocal_norm"] == pytest.approx(expected / options.output_scale)
    # Both factors of weights, one of outputs: the kernel grows with their second powers.
    rate = {(n["init_scale"], n["output_scale"]): n["reciprocal_norm"] for n in networks}
    assert rate[1.0, 1.0] == pytest.approx(2 * rate[1.0, 2.0], rel=1e-6)
    assert rate[1.0, 1.0] == pytest.approx(4 * rate[2.0, 1.0], rel=1e-6)


def test_feature_learning_interval():
    steps = numpy.arange(101)
    kernel = numpy.clip(steps - 40, 0, 20).astype(float)
    assert comparison_to_ntk.feature_learning(steps, kernel) == (41, 59)


def test_bad_input(capsys):
    assert main(*TINY, "--scaling", "--depth", 3) == 2
    assert "--scaling takes --depth 2, got 3" in capsys.readouterr().err
    for words in (("--depth", 1), ("--init_scale", 0), ("--dataset", "cifar"), ("--points", 1)):
        with pytest.raises(SystemExit) as exit:
            main(*words)
        assert exit.value.code == 2
        assert f"{words[0]} takes" in capsys.readouterr().err
