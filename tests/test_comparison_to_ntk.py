"""comparison_to_ntk.py as users run it, its kernel against per-sample gradients."""

from pathlib import Path

import numpy
import pytest
import torch
import yaml

import comparison_to_ntk
import report
import sweep
from helpers import ROOT, main_of, run
from lab.bench.files import read_config, read_metrics
from lab.bench.seeds import generator
from lab.data import images
from lab.data.images import ImageOptions
from lab.drawings.regime import feature_learning
from lab.measures.kernels import kernel_row, relu_kernel_row
from lab.networks.mlp import relu_mlp
from lab.reports import figure_10
from utils import Centroids

TINY = ("--dataset", "digits", "--points", 60, "--width", 8)
COLUMNS = (
    "step,loss,test_loss,train_accuracy,test_accuracy,ntk_mean,inner_product_of_point,inner_product_rate,"
    "inner_product_difference,alignment_of_point,centroid_norm_of_point,centroid_norm_official_of_point"
)
main = main_of(comparison_to_ntk)


def test_the_command_users_type(tmp_path):
    words = (*TINY, "--steps", 300, "--name", "r")
    done = run("comparison_to_ntk.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "runs/comparison_to_ntk/r"
    folder = tmp_path / "runs/comparison_to_ntk/r"
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    lines = (folder / "metrics.csv").read_text().splitlines()
    assert lines[0] == COLUMNS
    assert lines[-1].startswith("300,")
    begun = read_config(folder)["results"]
    assert main(*words) == 0  # finished, so that the network is the last one
    assert read_config(folder)["results"] == begun


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


def test_the_regulariser_holds_the_norm_of_the_centroid_down():
    ends = []
    for jr in (0.0, 1.0):
        assert main(*TINY, "--steps", 200, "--jr", jr, "--name", f"jr{jr}") == 0
        ends.append(read_metrics(f"runs/comparison_to_ntk/jr{jr}")["centroid_norm_of_point"])
    assert ends[0][0] == ends[1][0]  # one initial network
    assert ends[1][-1] < 0.7 * ends[0][-1]


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


WORDS = ("dataset=digits", "points=60", "width=8", "steps=5")


def scaled_runs(*scales):
    """Tiny finished runs of each pair of scales, as `figure_10.networks` reads them."""
    for init, output in scales:
        words = ("--init_scale", init, "--output_scale", output)
        assert main(*TINY, "--steps", 5, *words) == 0
    same = {"dataset": "digits", "points": 60, "width": 8, "steps": 5, "depth": 2, "lr": 0.01}
    return figure_10.networks(Path("runs/comparison_to_ntk"), same)


def test_a_run_keeps_what_figure_10_needs_of_its_initial_network():
    scales = [(0.25, output) for output in (0.25, 0.5, 1.0, 2.0, 4.0)] + [(1, 1), (1, 2), (2, 1)]
    networks = scaled_runs(*scales)
    assert [(n["init_scale"], n["output_scale"]) for n in networks] == scales
    x, y, *_ = images.load(
        ImageOptions(dataset="digits", points=60, dtype="float64"), classes=(0, 1)
    )
    for network in networks:  # official: without the output scale, which is 0.25 to 4 here
        options = comparison_to_ntk.Options(
            width=8, init_scale=network["init_scale"], output_scale=network["output_scale"]
        )
        whole = comparison_to_ntk.Network(options, x.shape[1])
        norms = Centroids(lambda z, layers=whole.layers: layers(z)[:, 0])(x).norms
        expected = norms.reciprocal().mean().item()
        assert network["reciprocal_norm_official"] == pytest.approx(expected)
        assert network["reciprocal_norm"] == pytest.approx(expected / options.output_scale)
        kernel = kernel_row(whole, x[int((y == 1).nonzero()[0])], x)
        rate = 0.01 * (kernel * (y - torch.sigmoid(whole(x)))).mean().item()
        assert network["rate"] == pytest.approx(rate)
    # Both factors of weights, one of outputs: the kernel grows with their second powers.
    norms = {(n["init_scale"], n["output_scale"]): n["reciprocal_norm"] for n in networks}
    assert norms[1.0, 1.0] == pytest.approx(2 * norms[1.0, 2.0], rel=1e-6)
    assert norms[1.0, 1.0] == pytest.approx(4 * norms[2.0, 1.0], rel=1e-6)
    for folder in Path("runs/comparison_to_ntk").iterdir():
        config, metrics = read_config(folder), read_metrics(folder)
        assert config["results"]["rate"] == pytest.approx(metrics["inner_product_rate"][0])
        (network,) = (
            n for n in networks if all(n[k] == config[k] for k in ("init_scale", "output_scale"))
        )
        assert network["max_alignment"] == metrics["alignment_of_point"].max()


def test_the_grid_of_figure_10_is_that_of_fifty_networks():
    jobs = sweep.jobs_in(sweep.grids_of(str(ROOT / "configs/figure_10.yaml")), {})
    chosen = {(j.options.init_scale, j.options.output_scale, j.options.seed) for j in jobs}
    scales = (0.25, 0.5, 1.0, 2.0, 4.0)
    assert chosen == {(a, b, seed) for a in scales for b in scales for seed in (0, 1)}
    assert len({job.folder for job in jobs}) == 50


def test_figure_10_is_drawn_from_finished_runs(capsys):
    networks = scaled_runs((0.5, 1.0), (1.0, 0.25), (1.0, 1.0), (2.0, 1.0), (1.0, 4.0))
    capsys.readouterr()
    assert report.main(["figure_10", *WORDS]) == 0
    *printed, path = capsys.readouterr().out.splitlines()
    assert Path(path).read_bytes().startswith(b"\x89PNG")
    table = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ")[1:] for row in printed}
    largest = {
        (n["init_scale"], n["output_scale"]): "{0:.2f} ({0:.2f}–{0:.2f})".format(n["max_alignment"])
        for n in networks
    }
    # Factor: on the output; on the weights; its root on the weights, which is the same norm.
    assert table["0.25"] == [largest[1.0, 0.25], "–", largest[0.5, 1.0], "–"]
    assert table["0.5"] == ["–", largest[0.5, 1.0], "–", "–"]
    assert table["1"] == [largest[1.0, 1.0]] * 4
    assert table["4"] == [largest[1.0, 4.0], "–", largest[2.0, 1.0], "–"]
    labels = {"reciprocal_norm": "scaled", "reciprocal_norm_official": "official", "rate": "rate"}
    rate, largest = ([n[name] for n in networks] for name in ("rate", "max_alignment"))
    for name, label in labels.items():
        logs = numpy.log(numpy.abs([n[name] for n in networks]))
        against = (numpy.corrcoef(logs, y)[0, 1] for y in (largest, numpy.log(numpy.abs(rate))))
        found = [table[label][i] for i in (0, 3)]
        assert found == [f"{r:.3f}".replace("-", "−") for r in against]
        assert (table[label][1] == "–") == (label == "rate") and table[label][-1] == "5"


def test_a_partial_correlation_takes_out_what_goes_with_the_third():
    rng = numpy.random.default_rng(0)
    one, other, given = rng.standard_normal((3, 40))
    one, other = one + 3 * given, other + 2 * one - given
    r = numpy.corrcoef([one, other, given])
    expected = (r[0, 1] - r[0, 2] * r[1, 2]) / ((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2)) ** 0.5
    assert figure_10.correlation(one, other, given) == f"{expected:.3f}".replace("-", "−")
    assert figure_10.correlation(one, other, one) == "–"  # nothing is left of it


def test_figure_10_reads_the_grid_that_older_code_trained_at_once(tmp_path, capsys):
    run = scaled_runs((0.5, 1.0))[0]
    (folder,) = Path("runs/comparison_to_ntk").iterdir()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    old = [
        {"init_scale": init, "output_scale": 4.0 * init, "seed": 0, "rate": rate,
         "reciprocal_norm": 1 / init, "max_alignment": 0.3 / init}
        for init, rate in ((0.5, 0.1), (1.0, -0.2))
    ]  # fmt: skip
    old[0]["output_scale"] = 1.0  # which the new run has as well, and that one counts
    config |= {"init_scale": 1.0, "scaling": True, "results": {"networks": old}}
    grid = folder.with_name("scaling")
    grid.mkdir()
    (grid / "config.yaml").write_text(yaml.safe_dump(config))
    name = "alignment_of_point[init_scale=0.5 output_scale=2.0 seed=0]"
    (grid / "metrics.csv").write_text(f"step,{name}\n0,0.1\n")
    networks = figure_10.networks(folder.parent, {"dataset": "digits", "points": 60, "steps": 5})
    assert networks == [run, {**old[1], "reciprocal_norm_official": 4.0}]
    assert report.main(["figure_10", *WORDS]) == 0
    assert "| scaled | – | – | – | – | 2 |" in capsys.readouterr().out


def test_figure_10_of_the_committed_networks():
    if not (ROOT / "results/comparison_to_ntk/scaling/config.yaml").exists():
        pytest.skip("the old grid is not there")
    same = comparison_to_ntk.Options().identity()
    same = {k: v for k, v in same.items() if k not in figure_10.FREE}
    networks = figure_10.networks(ROOT / "results/comparison_to_ntk", same)
    assert len(networks) >= 50
    value = {key: numpy.array([n[key] for n in networks]) for key in networks[0]}
    rows = {row.pop("factor"): list(row.values()) for row in figure_10.readings(value, 2)}
    means = {f: [float(cell.split(" ")[0]) for cell in rows[f][:3]] for f in ("0.25", "4")}
    # As the paper says at an equal official norm; the weights do more at an equal factor; at an
    # equal norm with the output scale in it they tie.
    assert means["0.25"] == pytest.approx([0.58, 0.68, 0.58], abs=0.02)
    assert means["4"] == pytest.approx([0.29, 0.13, 0.28], abs=0.02)


def test_feature_learning_interval():
    steps = numpy.arange(101)
    kernel = numpy.clip(steps - 40, 0, 20).astype(float)
    assert feature_learning(steps, kernel) == (41, 59)


def test_a_kernel_that_never_changes_is_drawn_without_a_regime():
    assert main(*TINY, "--steps", 5, "--lr", 1e-300, "--name", "still") == 0
    assert (Path("runs/comparison_to_ntk/still") / "figure.png").exists()


def test_bad_words_of_figure_10(capsys):
    for words, says in (
        (["figure_10"], "no finished run of comparison_to_ntk.py with its other options at"),
        (["figure_10", "steps"], "options of runs, such as steps=8000, got 'steps'"),
        (["figure_10", "out_dir=a/b"], "options of runs, such as steps=8000, got 'out_dir=a/b'"),
        (["figure_10", "steps=-1"], "--steps takes a whole number of at least 0, got '-1'"),
    ):
        assert report.main(words) == 2
        assert says in capsys.readouterr().err
