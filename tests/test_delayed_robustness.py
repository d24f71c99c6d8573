"""delayed_robustness.py as users run it, its update against one written out."""

import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

import delayed_robustness
import report
from helpers import ROOT, main_of, run, write_cifar
from lab.bench.files import read_metrics
from lab.bench.plots import Figure
from lab.bench.seeds import generator
from lab.data import cifar
from lab.fast.convolutions import convolutional_network
from lab.networks.mlp import Normalisation
from lab.reports import figure_6
from utils import Centroids

TINY = ("--points", 12, "--filters", 2, "--batch_size", 5, "--device", "cpu")
TINY = (*TINY, "--num_logs", 8, "--lr", 0.01)
QUICK = (*TINY, "--attack_points", 6, "--num_attacks", 2)
COLUMNS = "loss,train_accuracy,test_accuracy,pc1,alignment,jacobian_norm"
RUNS = Path("runs/delayed_robustness")
main = main_of(delayed_robustness)


@pytest.fixture(autouse=True)
def data(tmp_path):
    write_cifar(tmp_path / "data", 12)


def test_the_command_users_type(tmp_path):
    words = (*QUICK, "--jr", 0.01, "--steps", 30, "--num_logs", 20, "--name", "r")
    done = run("delayed_robustness.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "runs/delayed_robustness/r"
    assert (RUNS / "r/figure.png").read_bytes().startswith(b"\x89PNG")
    lines = (RUNS / "r/metrics.csv").read_text().splitlines()
    assert lines[0] == f"step,{COLUMNS},accuracy_apgd_ce,accuracy_official_protocol"
    assert lines[-1].startswith("30,")
    m = read_metrics(RUNS / "r")
    for column in ("accuracy_apgd_ce", "accuracy_official_protocol"):
        attacked = numpy.isfinite(m[column])
        assert m["step"][attacked].tolist() == [0, 30]  # --num_attacks 2
    assert m["train_accuracy"][-1] > 0.5


def test_a_machine_without_pyautoattack_can_do_without_attacks(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    assert delayed_robustness.main([*map(str, QUICK), "--steps", "2"]) == 2
    assert "--attack takes the package pyautoattack, which is not" in capsys.readouterr().err
    assert delayed_robustness.main([*map(str, TINY), "--steps", "2", "--attack", "none"]) == 0


def reference(o, x, targets):
    """Loss and weights after two updates of plain torch layers, regulariser and all."""
    f = o.filters
    layers = []
    for i, (inputs, outputs) in enumerate(
        [(3, f), (f, f), (f, 2 * f), (2 * f, 2 * f), (2 * f, 4 * f), (4 * f, 4 * f)]
    ):
        layers += [nn.Conv2d(inputs, outputs, 3, 1 + i % 2, 1, bias=False), nn.ReLU()]
    layers += [nn.AvgPool2d(2, 2), nn.AvgPool2d(2, 2), nn.Flatten()]
    layers += [nn.Linear(4 * f, 128, bias=False), nn.ReLU(), nn.Linear(128, 10, bias=False)]
    network = nn.Sequential(*layers).double()
    initial = convolutional_network(f, 10, generator(o.seed, "weights")).state_dict()
    for p, values in zip(network.parameters(), initial.values(), strict=True):
        p.data = values.double().clone(memory_format=torch.contiguous_format)
    optimiser = torch.optim.AdamW(network.parameters(), o.lr, weight_decay=o.weight_decay)
    for step in range(2):
        x = x.detach().requires_grad_()
        outputs = network(x)
        draws = generator(o.seed, "projections", step)
        v = torch.randn(len(x), 10, 1, generator=draws, dtype=x.dtype)[..., 0]
        v = v / v.norm(dim=1, keepdim=True)
        (rows,) = torch.autograd.grad((outputs * v).sum(), x, create_graph=True)
        norm = 10**0.5 * rows.flatten(1).norm(dim=1).mean()
        if o.loss_fn == "MSE":
            loss = ((outputs - torch.eye(10, dtype=x.dtype)[targets]) ** 2).mean()
        else:
            loss = nn.functional.cross_entropy(outputs, targets)
        optimiser.zero_grad()
        (loss + o.jr * norm).backward()
        nn.utils.clip_grad_value_(network.parameters(), 1.0)
        optimiser.step()
    return network


@pytest.mark.parametrize("loss_fn", ["MSE", "CrossEntropy"])
def test_two_updates_against_plain_layers(loss_fn):
    words = (*TINY, "--batch_size", 12, "--attack", "none", "--steps", 2, "--dtype", "float64")
    words = (*words, "--loss_fn", loss_fn, "--jr", 5, "--weight_decay", 0.1)
    assert main(*words, "--name", "whole") == 0
    o = delayed_robustness.parse(delayed_robustness.Options, "", list(map(str, words)))
    images = cifar.load(o)
    normalised = Normalisation(cifar.MEAN, cifar.STD)
    network = reference(o, normalised(images.x), images.y)
    found = torch.load(RUNS / "whole/checkpoint.pt", weights_only=True)["state"]["network"]
    for p, weights in zip(network.parameters(), found.values(), strict=True):
        torch.testing.assert_close(weights, p.detach(), rtol=1e-8, atol=1e-10)
    m = read_metrics(RUNS / "whole")
    outputs = network(normalised(images.x_test))
    expected = (outputs.argmax(1) == images.y_test).double().mean().item()
    assert m["test_accuracy"][-1] == pytest.approx(expected)
    # By normalised pixels: the Jacobian by raw ones, its columns times the deviations.
    x = images.x.requires_grad_()
    rows = torch.stack(
        [torch.autograd.grad(f.sum(), x, retain_graph=True)[0] for f in network(normalised(x)).T]
    )
    norms = (rows * normalised.std).square().sum(dim=(0, 2, 3, 4)).sqrt()
    assert m["jacobian_norm"][-1] == pytest.approx(norms.mean().item(), rel=1e-6)


def test_measurements_in_pieces_are_those_of_the_whole(monkeypatch):
    words = (*TINY, "--batch_size", 12, "--attack", "none", "--steps", 5, "--dtype", "float64")
    assert main(*words, "--name", "whole") == 0
    monkeypatch.setattr(delayed_robustness, "AT_ONCE", 5)
    assert main(*words, "--name", "pieces") == 0
    whole, pieces = (read_metrics(RUNS / name) for name in ("whole", "pieces"))
    for name in COLUMNS.split(","):
        assert pieces[name] == pytest.approx(whole[name], rel=1e-9)
    assert whole["loss"][-1] < whole["loss"][0]


def test_regulariser_lowers_the_norm_and_changes_no_draws():
    for jr in (0, 0.1):
        assert main(*TINY, "--attack", "none", "--jr", jr, "--steps", 40, "--name", jr) == 0
    plain, regularised = (read_metrics(RUNS / str(jr)) for jr in (0, 0.1))
    assert set(plain) == {"step", *COLUMNS.split(",")}
    for name in COLUMNS.split(","):
        assert plain[name][0] == regularised[name][0]
    assert regularised["jacobian_norm"][-1] < 0.7 * plain["jacobian_norm"][-1]


def test_epochs_are_passes_over_the_data():
    assert main(*TINY, "--attack", "none", "--epochs", 3) == 0
    (folder,) = RUNS.iterdir()
    assert read_metrics(folder)["step"][-1] == 9  # 12 points in batches of 5
    again = ("--config", folder / "config.yaml", "--name", "again")
    assert main(*again) == 0
    assert (RUNS / "again/metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()


def test_figure_6_draws_images_and_their_centroids(capsys, monkeypatch):
    for jr in (0, 0.01):
        assert main(*QUICK, "--jr", jr, "--steps", 60, "--name", f"jr{jr}") == 0
    before = {path: path.stat().st_mtime_ns for path in RUNS.glob("*/*")}
    capsys.readouterr()
    drawn = []
    image_rows = figure_6.image_rows
    monkeypatch.setattr(
        figure_6, "image_rows", lambda *given: drawn.append(given) or image_rows(*given)
    )
    assert report.main(["figure_6", "jr0", str(RUNS / "jr0.01")]) == 0
    assert capsys.readouterr().out == "runs/delayed_robustness/figure_6.png\n"
    assert (RUNS / "figure_6.png").read_bytes().startswith(b"\x89PNG")
    assert {path: path.stat().st_mtime_ns for path in RUNS.glob("*/*")} == before
    ((rows, captions, _),) = drawn
    aligned = "GrokAlign (λ_Jac 0.01)"
    assert list(rows) == ["training image", "weight decay", aligned]
    images = cifar.load(delayed_robustness.Options(points=12, device="cpu")).x[:8]
    assert torch.equal(rows["training image"], images)
    network = convolutional_network(2, 10, generator(1))
    state = torch.load(RUNS / "jr0.01/checkpoint.pt", weights_only=True)["state"]["network"]
    network.load_state_dict(state)
    found = Centroids(network)(Normalisation(cifar.MEAN, cifar.STD)(images))
    for shown, centroid in zip(rows[aligned], found.centroids, strict=True):
        torch.testing.assert_close(2 * shown - 1, centroid / centroid.abs().max())
    assert captions[aligned] == [f"cosine {a:.2f}" for a in found.alignments]
    assert report.main(["figure_6", "jr0", "jr0.01", "--name", "both"]) == 0
    assert (RUNS / "both.png").exists()


def test_figure_5_is_weight_decay_against_grokalign(monkeypatch, capsys):
    for jr in (0.01, 0):
        assert main(*QUICK, "--jr", jr, "--steps", 2) == 0
    with_it, without = sorted(
        (run for run in RUNS.iterdir()), key=lambda run: "jr=" not in run.name
    )
    words = without.name.split(",")
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: drawn.append(figure))
    capsys.readouterr()
    assert report.main(["figure_5", *words]) == 0
    assert capsys.readouterr().out.strip() == f"{RUNS}/{','.join(['figure_5', *words])}.png"
    for line, folder in zip(drawn[0].axes[1].lines, (without, with_it), strict=True):
        assert line.get_ydata().tolist() == read_metrics(folder)["alignment"].tolist()
    (legend,) = drawn[0].legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["weight decay", "GrokAlign (λ_Jac 0.01)"]


def test_figure_6_of_unfinished_foreign_or_damaged_runs_is_refused(capsys):
    def complaint(*words):
        capsys.readouterr()
        assert report.main(["figure_6", *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    # Without words, the two runs of the paper's figure.
    assert "its name in runs/delayed_robustness; 'default' holds none" in complaint()
    assert main(*TINY, "--attack", "none", "--steps", 1, "--name", "one") == 0
    (RUNS / "one/checkpoint.pt").write_bytes(b"PK")
    assert "one/checkpoint.pt is damaged" in complaint("one")
    (RUNS / "one/checkpoint.pt").unlink()
    assert "one/checkpoint.pt cannot be read" in complaint("one")
    assert main(*TINY, "--attack", "none", "--steps", 1, "--name", "two") == 0
    content = torch.load(RUNS / "two/checkpoint.pt")
    torch.save(content | {"finished": False}, RUNS / "two/checkpoint.pt")
    assert f"{RUNS}/two is not finished" in complaint("two")
    path = RUNS / "two/config.yaml"
    path.write_text(path.read_text().replace("filters:", "width:"))
    wanted = "figure_6 takes finished runs of delayed_robustness; "
    assert f"{wanted}{RUNS}/two is none" in complaint("two")


def test_the_grid_is_both_runs_at_a_laptop_s_size(tmp_path):
    done = run("sweep.py", ROOT / "configs/figure_5.yaml", "--dry_run", folder=tmp_path)
    size = "python delayed_robustness.py --points 256 --filters 8"
    assert done.stdout.splitlines()[:2] == [
        f"{size} --batch_size 64 --attack_points 256",
        f"{size} --jr 0.001 --batch_size 64 --attack_points 256",
    ]


def test_both_attacks_on_a_linear_model(monkeypatch):
    draws = numpy.random.default_rng(1)
    colours = draws.integers(30, 226, (60, 1, 1, 3))
    images = (colours + draws.integers(-20, 21, (60, 32, 32, 3))).astype(numpy.uint8)
    z = (images / 255 - cifar.MEAN) / cifar.STD  # (60, 32, 32, 3)
    # Red against blue; the first two classes share the points, six of them labelled wrongly.
    weight = numpy.array([1.0, 0.25, -1.0]) / 1024
    right = numpy.where((z @ weight).sum((1, 2)) > 0, 0, 1)
    labels = numpy.where(numpy.arange(60) < 6, 1 - right, right)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    numpy.savez("data/cifar10-60.npz", **arrays)
    layer = nn.Linear(3072, 2, bias=False)
    rows = torch.tensor(weight).view(3, 1, 1).expand(3, 32, 32).flatten()
    layer.weight.data = torch.stack([rows, -rows]).float() / 2
    pad = nn.ConstantPad1d((0, 8), -100.0)  # the other eight classes are never nearest
    network = nn.Sequential(nn.Flatten(), layer, pad)
    monkeypatch.setattr(delayed_robustness, "convolutional_network", lambda *_: network)
    epsilon = 0.1
    words = ("--points", 60, "--attack_epsilon", epsilon, "--steps", 0, "--name", "linear")
    assert main(*TINY, *words) == 0
    m = read_metrics(RUNS / "linear")

    def surviving(low, high):
        sign = (1 - 2 * labels)[:, None, None, None] * weight
        worst = numpy.where(sign > 0, low, high)
        return (((sign * worst).sum((1, 2, 3)) > 0) & (labels == right)).mean()

    raw = [(images / 255 + way).clip(0, 1) for way in (-epsilon, epsilon)]
    expected = surviving(*((edge - cifar.MEAN) / cifar.STD for edge in raw))
    official = surviving(*((z + way).clip(0, 1) for way in (-epsilon, epsilon)))
    assert m["test_accuracy"] == pytest.approx([0.9])
    assert m["accuracy_apgd_ce"] == pytest.approx([expected])
    assert m["accuracy_official_protocol"] == pytest.approx([official])
    assert min(expected, official) > 0.2 and max(expected, official) < 0.9
    assert expected != official


def test_the_paper_s_length_is_the_default():
    o = delayed_robustness.Options()
    assert o.steps == 36_000 * (o.points // o.batch_size)


def test_runs_without_the_official_column_are_still_drawn():
    for name in ("old", "new"):
        assert main(*QUICK, "--steps", 2, "--name", name) == 0
    table = RUNS / "old/metrics.csv"
    lines = [line.rsplit(",", 1)[0] for line in table.read_text().splitlines()]
    table.write_text("\n".join(lines) + "\n")
    assert "accuracy_official_protocol" not in read_metrics(RUNS / "old")
    checkpoint = torch.load(RUNS / "old/checkpoint.pt", weights_only=True)
    for row in checkpoint["rows"]:
        del row["accuracy_official_protocol"]
    torch.save(checkpoint, RUNS / "old/checkpoint.pt")
    assert main(*QUICK, "--steps", 2, "--name", "old") == 0
    assert report.main(["compare", "delayed_robustness", "old", "new"]) == 0
    assert (RUNS / "old against new.png").exists()


@pytest.mark.parametrize(
    ("attack", "columns"),
    [
        ("apgd-ce", ["accuracy apgd ce", "accuracy official protocol"]),
        ("standard", ["accuracy official protocol", "accuracy standard"]),
        ("none", []),
    ],
)
def test_the_figures_show_both_attacks(attack, columns, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "lab.bench.runs.Run.save_figure", lambda run, drawing: drawn.append(drawing.axes[2])
    )
    size = TINY if attack == "none" else QUICK
    assert main(*size, "--steps", 2, "--attack", attack, "--name", "attacked") == 0
    (axes,) = drawn
    legend = axes.get_legend()
    labels = [text.get_text() for text in legend.get_texts()] if legend else ["test accuracy"]
    assert labels == ["test accuracy", *columns]
    m = read_metrics(RUNS / "attacked")
    for line, label in zip(axes.lines, labels, strict=False):
        values = m[label.replace(" ", "_")]
        assert line.get_ydata().tolist() == values[numpy.isfinite(values)].tolist()
    assert report.main(["compare", "delayed_robustness", "attacked"]) == 0
    assert (RUNS / "attacked.png").exists()


def test_an_epsilon_in_levels_is_refused(capsys):
    assert main(*QUICK, "--attack_epsilon", 4, "--steps", 0) == 2
    takes = "--attack_epsilon takes a number above 0 and of at most 1, got '4'"
    assert takes in capsys.readouterr().err and not RUNS.exists()


def test_damaged_images_are_named(capsys):
    Path("data/cifar10-12.npz").write_bytes(b"PK")
    assert main(*TINY) == 2
    error = capsys.readouterr().err
    assert "cifar10-12.npz is damaged" in error
    assert error.count("\n") == 1
