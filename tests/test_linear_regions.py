"""linear_regions.py as users run it, its states at three moments, its measurements by hand."""

import signal
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

import accelerating_grokking
import inhibiting_generalisation
import linear_regions
from helpers import interrupt, run
from lab import images
from lab.errors import UserError
from lab.images import ImageOptions
from lab.kept import Kept, kept_moments
from lab.models import relu_mlp_of
from lab.runs import read_config, read_metrics
from lab.windows import Picture, planes, windows
from utils import Centroids

TINY = ("--dataset", "digits", "--points", 60, "--width", 10, "--batch_size", 20, "--device", "cpu")
TINY = (*TINY, "--init_scale", 2, "--lr", 0.01, "--check_every", 2, "--clip", 0)
TINY = (*TINY, "--loss_fn", "CrossEntropy", "--stop_at", 0.69)
TINY = (*TINY, "--half_width", 0.3, "--steps", 200, "--num_logs", 10)
COLUMNS = (
    "step,loss,train_accuracy,test_accuracy,jacobian_norm,alignment,regions,operator_norm,"
    "point_operator_norm,radius,input_radius,point_alignment,radius_0,radius_1,radius_2"
)
RUNS = Path("runs/linear_regions")


def main(*words):
    return linear_regions.main([str(word) for word in words])


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take most of the time of so small a run, and one test has them drawn."""
    monkeypatch.setattr(linear_regions, "figure", lambda whole, x, drawn: None)


@pytest.mark.usefixtures("undrawn")
def test_the_command_users_type_also_after_a_kill(tmp_path):
    cut = tmp_path / RUNS / "cut"
    killed = interrupt(
        *("linear_regions.py", *TINY, "--checkpoint_every", 0, "--name", "cut"),
        folder=tmp_path, run_folder=cut, rows=18, signal=signal.SIGKILL,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    before = torch.load(cut / "checkpoint.pt")
    assert set(before["state"]["kept"]) == {"memorised"}  # so that resuming has to keep it
    done = run("linear_regions.py", *TINY, "--name", "cut", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing after" in done.stderr
    assert done.stdout.splitlines() == [str(RUNS / "cut")]
    assert (cut / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert main(*TINY, "--name", "whole") == 0
    assert (cut / "metrics.csv").read_bytes() == (RUNS / "whole/metrics.csv").read_bytes()
    assert (cut / "metrics.csv").read_text().startswith(COLUMNS + "\n")
    m = read_metrics(cut)
    ours, theirs = kept_moments(cut), kept_moments(RUNS / "whole")
    assert set(ours) == {"memorised", "last"}
    assert ours["memorised"].step == m["step"][(m["train_accuracy"] == 1).argmax()]
    assert m["step"][-1] == ours["last"].step
    assert (m["test_accuracy"][:-1] <= 0.69).all() and m["test_accuracy"][-1] > 0.69
    for moment in ours:
        for name, weight in ours[moment].weights.items():
            assert torch.equal(weight, theirs[moment].weights[name])
    assert not torch.equal(ours["memorised"].weights["0.weight"], ours["last"].weights["0.weight"])


@pytest.mark.usefixtures("undrawn")
def test_last_row_is_what_the_trained_network_has_around_the_points():
    assert main(*TINY, "--dtype", "float64", "--name", "r") == 0
    last = {column: values[-1] for column, values in read_metrics(RUNS / "r").items()}
    weights = list(torch.load(RUNS / "r/checkpoint.pt")["state"]["network"].values())
    x = images.load(ImageOptions(dataset="digits", points=60, dtype="float64")).x
    norms, inputs, planar = [], [], []
    first, second = torch.linalg.qr((x[1:3] - x[0]).T).Q.T
    for point in x[:3]:
        rows, distances, cuts = torch.eye(64, dtype=torch.float64), [], []
        for weight in weights[:-1]:
            rows = weight @ rows  # of the units before their activation, one each
            units = rows @ point
            distances += [units.abs() / rows.norm(dim=1)]
            cuts += [units.abs() / torch.stack([rows @ first, rows @ second]).norm(dim=0)]
            rows = (units > 0)[:, None] * rows
        norms.append(torch.linalg.matrix_norm(weights[-1] @ rows, 2))
        inputs.append(torch.cat(distances).nan_to_num(torch.inf).min())
        planar.append(torch.cat(cuts).nan_to_num(torch.inf).min().clamp(max=0.3))
    assert last["point_operator_norm"] == pytest.approx(float(sum(norms) / 3))
    assert last["input_radius"] == pytest.approx(float(sum(inputs) / 3))
    assert [last[f"radius_{i}"] for i in range(3)] == pytest.approx([float(r) for r in planar])
    assert last["radius"] == pytest.approx(float(sum(planar) / 3))


@pytest.mark.usefixtures("undrawn")
def test_the_same_network_without_the_regulariser_and_finished_runs(capsys, monkeypatch):
    assert main(*TINY, "--jr", 0.1, "--without_jr") == 0
    whole = Path(capsys.readouterr().out.strip())
    assert "without_jr" in whole.name and "jr=0.1" in whole.name
    with_jr, without = (
        Path(str(whole).replace("jr=0.1,without_jr", f"jr={jr}")) for jr in (0.1, 0.0)
    )
    assert sorted(RUNS.iterdir()) == sorted([whole, with_jr, without])
    start = [{k: v[0] for k, v in read_metrics(each).items()} for each in (with_jr, without)]
    assert start[0] == start[1]
    m = read_metrics(whole)
    assert m["sample"].tolist() == [0, 1, 2] * 4
    assert m["run"].tolist() == [0] * 6 + [1] * 6
    end = read_metrics(with_jr)
    assert m["step"][3:6].tolist() == [end["step"][-1]] * 3
    for column in ("regions", "operator_norm", "point_operator_norm", "radius", "input_radius"):
        assert m[column][3:6].mean() == pytest.approx(end[column][-1], rel=1e-6)

    drawn = []
    monkeypatch.setattr(linear_regions, "figure", lambda *drawing: drawn.append(drawing))
    with_jr, without = with_jr.rename(RUNS / "with"), without.rename(RUNS / "without")
    words = ("--run", with_jr, "without", "--samples", 5, 9, 3, 0, 1, 2)
    assert main(*words, "--half_width", 0.3) == 0
    both = RUNS / "samples=5-9-3-0-1-2,half_width=0.3,run=with-without"
    assert capsys.readouterr().out.strip() == str(both)
    m = read_metrics(both)
    assert m["sample"].tolist() == [5, 9, 3, 0, 1, 2] * 4
    x = images.load(ImageOptions(dataset="digits", points=60)).x
    network = relu_mlp_of(kept_moments(without)["last"].weights)
    assert m["point_alignment"][-1] == pytest.approx(
        float(Centroids(network)(x[2:3]).alignments), rel=1e-4
    )
    _, _, pictures = drawn[-1]
    assert [(p.run, len(p.around)) for p in pictures] == [(0, 6), (0, 6), (1, 6), (1, 6)]
    medians = read_config(both / "config.yaml")["results"]
    assert len(medians) == 4
    of_last = medians["without, last: medians"]
    assert of_last["at the points"]["radius"] == pytest.approx(numpy.median(m["radius"][-6:]))
    assert of_last["input_radius, all test points"] > 0
    before = [(both / name).read_bytes() for name in ("metrics.csv", "checkpoint.pt")]
    assert main("--config", both / "config.yaml") == 0
    assert before == [(both / name).read_bytes() for name in ("metrics.csv", "checkpoint.pt")]


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_never_generalised_is_drawn_at_its_end(monkeypatch):
    drawn = []
    monkeypatch.setattr(linear_regions, "figure", lambda *drawing: drawn.append(drawing))
    assert main(*TINY, "--stop_at", 1, "--steps", 4, "--name", "short") == 0
    (picture,) = drawn[-1][2]
    assert (picture.moment, picture.step) == ("last", 4)


@pytest.mark.usefixtures("undrawn")
def test_stop_at_none_goes_on_to_the_end(monkeypatch):
    monkeypatch.setattr(linear_regions, "GENERALISED", 0.6)
    assert main(*TINY, "--stop_at", "none", "--name", "whole") == 0
    m, moments = read_metrics(RUNS / "whole"), kept_moments(RUNS / "whole")
    assert (m["test_accuracy"][:-1] > 0.69).any() and m["step"][-1] == moments["last"].step == 200
    assert moments["generalised"].step == m["step"][(m["test_accuracy"] > 0.6).argmax()] < 200


def test_kept_is_a_copy_of_the_first_time(tmp_path):
    network = torch.nn.Linear(2, 2)
    kept, weight = Kept(network), network.weight.detach().clone()
    kept.first("now", 3, torch.tensor(False))
    assert not kept.moments
    kept.first("now", 4, torch.tensor(True))
    torch.nn.init.zeros_(network.weight)
    kept.first("now", 5, torch.tensor(True))
    again = Kept(network)
    again.load_state_dict(kept.state_dict())
    assert again.moments["now"].step == 4
    assert torch.equal(again.moments["now"].weights["weight"], weight)


@pytest.mark.usefixtures("undrawn")
def test_runs_that_cannot_be_drawn(capsys, monkeypatch):
    def complaint(*words):
        assert main(*words) == 2
        return capsys.readouterr().err.strip()

    assert complaint("--run", "nowhere").endswith("'nowhere' holds no run")
    tiny = ("--dataset", "digits", "--points", 30, "--width", 4, "--device", "cpu", "--steps", 1)
    assert main(*tiny, "--name", "a") == 0
    assert main(*tiny[:3], 40, *tiny[4:], "--name", "b") == 0
    assert "were trained on the same images" in complaint("--run", "a", "b")
    content = torch.load(RUNS / "a/checkpoint.pt")
    del content["state"]["kept"]
    torch.save(content, RUNS / "a/checkpoint.pt")
    assert complaint("--run", "a").endswith("a keeps no states but the last")
    content = torch.load(RUNS / "b/checkpoint.pt")
    torch.save(content | {"finished": False}, RUNS / "b/checkpoint.pt")
    assert "b is not finished" in complaint("--run", "b")
    (RUNS / "b/checkpoint.pt").write_bytes(b"no checkpoint")
    assert complaint("--run", "b").endswith("is damaged")
    (RUNS / "b/checkpoint.pt").unlink()
    assert "cannot be read" in complaint("--run", "b")
    assert {path.name for path in RUNS.iterdir()} == {"a", "b"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--samples", 0, 1), "--samples takes three points for each plane, got 2"),
        (("--samples", 4, 5, 60), "--samples takes places from 0 to 59, got 60"),
        (("--samples", 4, 5, -1), "--samples takes a whole number of at least 0, got '-1'"),
        (
            ("--samples", 0, 1, 2, 7, 7, 3),
            "--samples 7 7 3: a plane takes two",
        ),
        (("--half_width", 0), "--half_width takes a number above 0, got '0'"),
        (("--most_regions", 2), "the slice holds more than 2 regions; take a smaller slice"),
        (("--without_jr", "--jr", 0), "--without_jr takes a --jr above 0"),
        (("--without_jr", "--run", "x"), "and no --run"),
        (("--clip", -1), "--clip takes a number of at least 0, got '-1'"),
        (("--loss_fn", "hinge"), "--loss_fn takes one of MSE, CrossEntropy, got 'hinge'"),
        (("--stop_at", 2), "--stop_at takes a number above 0 and of at most 1, or none, got '2'"),
    ],
)
def test_bad_input_is_one_line(words, complaint, capsys):
    try:
        assert main(*TINY, *words) == 2
    except SystemExit as exit:
        assert exit.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint in error
    if "--most_regions" not in words:
        assert not Path("runs").exists()


def test_collinear_points_are_refused():
    x = torch.randn(5, 8)
    x[4] = x[0] + 3 * (x[1] - x[0])
    with pytest.raises(UserError, match=r"--samples 0 1 4: .* not on one line"):
        planes(x, (0, 1, 2, 0, 1, 4))


def test_it_draws_the_runs_of_accelerating_grokking():
    words = ("--dataset", "digits", "--points", 60, "--width", 16, "--init_scale", 1, "--lr", 0.02)
    words = (*words, "--device", "cpu", "--steps", 300)
    assert accelerating_grokking.main([str(word) for word in words]) == 0
    (folder,) = Path("runs/accelerating_grokking").iterdir()
    assert "memorised" in kept_moments(folder), "otherwise there is one moment only"
    assert main("--run", folder, "--half_width", 1) == 0
    (drawn,) = RUNS.iterdir()
    assert (drawn / "figure.png").read_bytes().startswith(b"\x89PNG")
    steps = read_metrics(drawn)["step"]
    assert set(steps) == {kept_moments(folder)[moment].step for moment in ("memorised", "last")}


def test_figure_7s_run_at_three_moments_and_the_same_training_here(monkeypatch):
    drawn, figure = [], linear_regions.figure
    monkeypatch.setattr(linear_regions, "figure", lambda *drawing: drawn.append(drawing))
    words = ("--dataset", "digits", "--points", 260, "--width", 16, "--init_scale", 2, "--lr")
    words = (*words, 0.005, "--batch_size", 50, "--device", "cpu", "--steps", 600, "--name", "r")
    seven = ("--jr", 0, "--jr_weight", 0.002, "--num_logs", 300)
    assert inhibiting_generalisation.main([str(word) for word in (*words, *seven)]) == 0
    assert main("--run", "inhibiting_generalisation/r", "--half_width", 0.5) == 0
    (folder,) = RUNS.iterdir()
    assert folder.name == "half_width=0.5,run=inhibiting_generalisation_r"
    whole, x, pictures = drawn.pop()
    there = kept_moments("runs/inhibiting_generalisation/r")
    assert [p.moment for p in pictures] == ["memorised", "generalised", "last"]
    steps = [p.step for p in pictures]
    assert steps == [there[p.moment].step for p in pictures] == sorted(set(steps))
    assert len(read_config(folder / "config.yaml")["results"]) == 3
    figure(whole, x, pictures)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")

    assert main(*words, "--jr", 0.002, "--num_logs", 2) == 0
    here = kept_moments(RUNS / "r")
    assert here["last"].step == 600
    for name, weight in there["last"].weights.items():
        torch.testing.assert_close(here["last"].weights[name], weight)


def test_an_aligned_network_says_so_beneath_its_centroids():
    x = 2.5 * torch.eye(3, 64, dtype=torch.float64)
    x[:, :3] -= 0.5  # so that no point is on the side of another's unit
    network = relu_mlp_of({"0.weight": x, "2.weight": torch.ones(10, 3, dtype=torch.float64)})
    around = windows(network, x, (0, 1, 2), 0.5, 100)
    for point, one in zip(x, around, strict=True):
        torch.testing.assert_close(one.centroid(), 10 * point)
    saved = []
    whole = SimpleNamespace(
        options=SimpleNamespace(samples=(0, 1, 2)), command=str, save_figure=saved.append
    )
    picture = Picture(0, "r", "r", "last", 1, network, around, [])
    linear_regions.figure(whole, x, [picture])
    axes = [a for a in saved[0].axes if a.get_xlabel().startswith("centroid")]
    assert [a.get_xlabel() for a in axes] == ["centroid, cosine 1.00"] * 3
    for shown, point in zip(axes, x, strict=True):
        (image,) = shown.images
        values = torch.as_tensor(image.get_array())
        assert values.shape == (8, 8) and values.argmax() == point.argmax()
        assert image.norm.vmin == -image.norm.vmax
        red, _, blue, _ = image.cmap(image.norm(values.max()))
        assert red > blue
