"""linear_regions.py and Figures 1 and 11 as users make them, measurements by hand."""

import csv
import signal
from pathlib import Path

import numpy
import pytest
import torch

import accelerating_grokking
import inhibiting_generalisation
import linear_regions
import report
from helpers import interrupt, run
from lab.bench import record
from lab.bench.files import read_metrics
from lab.bench.snapshots import Snapshots, moments_of
from lab.data import images
from lab.data.images import ImageOptions
from lab.networks.mlp import relu_mlp_of
from lab.regions import SliceError
from lab.regions.windows import planes, windows
from lab.reports import _regions, figure_1
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


def figure(*words, name="figure_1"):
    """What `report.py figure_1` writes: rows of its table by moment, and its picture."""
    assert report.main([name, *map(str, words)]) == 0
    (path,) = RUNS.glob(f"{name}*.csv")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def drawn(monkeypatch):
    """What each figure was to show; only its first moment is drawn, which saves time."""
    seen, draw = [], _regions.figure

    def remember(*arguments):
        seen.append(arguments)
        return draw(*arguments[:2], arguments[2][:1], arguments[3])

    monkeypatch.setattr(figure_1, "figure", remember)
    return seen


def test_the_command_users_type_also_after_a_kill(tmp_path):
    cut = tmp_path / RUNS / "cut"
    killed = interrupt(
        *("linear_regions.py", *TINY, "--checkpoint_every", 0, "--name", "cut"),
        folder=tmp_path, run_folder=cut, rows=18, signal=signal.SIGKILL,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    before = torch.load(cut / "checkpoint.pt")
    assert set(before["state"]["snapshots"]) == {"memorised"}  # so that resuming has to keep it
    done = run("linear_regions.py", *TINY, "--name", "cut", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing after" in done.stderr
    assert done.stdout.splitlines() == [str(RUNS / "cut")]
    assert (cut / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert main(*TINY, "--name", "whole") == 0
    assert (cut / "metrics.csv").read_bytes() == (RUNS / "whole/metrics.csv").read_bytes()
    assert (cut / "metrics.csv").read_text().startswith(COLUMNS + "\n")
    m = read_metrics(cut)
    ours, theirs = moments_of(cut), moments_of(RUNS / "whole")
    assert set(ours) == {"memorised", "last"}
    assert ours["memorised"].step == m["step"][(m["train_accuracy"] == 1).argmax()]
    assert m["step"][-1] == ours["last"].step
    assert (m["test_accuracy"][:-1] <= 0.69).all() and m["test_accuracy"][-1] > 0.69
    for moment in ours:
        for name, weight in ours[moment].kept.items():
            assert torch.equal(weight, theirs[moment].kept[name])
    assert not torch.equal(ours["memorised"].kept["0.weight"], ours["last"].kept["0.weight"])


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


def test_runs_with_and_without_the_regulariser_in_one_figure(drawn, capsys):
    for jr, name in ((0.1, "with"), (0.0, "without")):
        assert main(*TINY, "--jr", jr, "--name", name) == 0
    start = [{k: v[0] for k, v in read_metrics(RUNS / run).items()} for run in ("with", "without")]
    assert start[0] == start[1]
    end = read_metrics(RUNS / "with")
    rows = figure(RUNS / "with", "linear_regions/without", "half_width=0.3")
    printed = capsys.readouterr().out
    of_points = [row for row in rows if row["sample"].isdecimal()]
    assert [row["sample"] for row in of_points] == ["0", "1", "2"] * 4
    assert [row["run"] for row in of_points] == ["with"] * 6 + ["without"] * 6
    assert [row["step"] for row in of_points[3:6]] == [f"{end['step'][-1]:.0f}"] * 3
    for column in ("regions", "operator_norm", "point_operator_norm", "radius", "input_radius"):
        values = [float(row[column]) for row in of_points[3:6]]
        assert numpy.mean(values) == pytest.approx(end[column][-1], rel=1e-6)
    path = RUNS / "figure_1,linear_regions_with,linear_regions_without,half_width=0.3.png"
    assert printed.splitlines()[-2:] == [str(path), str(path.with_suffix(".csv"))]
    assert "| without | last |" in printed
    for each in RUNS.glob("figure_1*"):
        each.unlink()

    words = (RUNS / "with", "linear_regions/without", "samples=5,9,3,0,1,2", "half_width=0.3")
    rows = figure(*words)
    of_points = [row for row in rows if row["sample"].isdecimal()]
    assert [row["sample"] for row in of_points] == ["5", "9", "3", "0", "1", "2"] * 4
    x = images.load(ImageOptions(dataset="digits", points=60)).x
    network = relu_mlp_of(moments_of(RUNS / "without")["last"].kept)
    assert float(of_points[-1]["point_alignment"]) == pytest.approx(
        float(Centroids(network)(x[2:3]).alignments), rel=1e-4
    )
    pictures = drawn[-1][2]
    assert [p.run for p in pictures] == ["with"] * 2 + ["without"] * 2
    assert [p.label for p in pictures] == ["λ_Jac 0.1"] * 2 + ["λ_Jac 0"] * 2
    assert all((len(p.windows), len(p.controls)) == (6, 2) for p in pictures)
    median = {row["sample"]: row for row in rows[-4:]}
    assert list(median) == [
        *("median of these", "median between them"),
        *("median of all training points", "median of all test points"),
    ]
    last = numpy.median([float(row["radius"]) for row in of_points[-6:]])
    assert float(median["median of these"]["radius"]) == pytest.approx(last)
    assert float(median["median of all test points"]["input_radius"]) > 0
    before = [path.read_bytes() for path in RUNS.glob("figure_1*.csv")]
    assert figure(*words) == rows
    assert before == [path.read_bytes() for path in RUNS.glob("figure_1*.csv")]


def test_a_run_that_never_generalised_is_drawn_at_its_end(drawn):
    assert main(*TINY, "--stop_at", 1, "--steps", 4, "--name", "short") == 0
    figure("linear_regions/short")
    (picture,) = drawn[-1][2]
    assert (picture.moment, picture.step) == ("last", 4)


def test_stop_at_none_goes_on_to_the_end(monkeypatch):
    monkeypatch.setattr(linear_regions, "GENERALISED", 0.6)
    assert main(*TINY, "--stop_at", "none", "--name", "whole") == 0
    m, moments = read_metrics(RUNS / "whole"), moments_of(RUNS / "whole")
    assert (m["test_accuracy"][:-1] > 0.69).any() and m["step"][-1] == moments["last"].step == 200
    assert moments["generalised"].step == m["step"][(m["test_accuracy"] > 0.6).argmax()] < 200


def test_a_snapshot_is_a_copy_of_the_first_time():
    network = torch.nn.Linear(2, 2)
    snapshots, weight = Snapshots(), network.weight.detach().clone()
    snapshots.first("now", 3, torch.tensor(False), network)
    assert not snapshots.moments
    snapshots.first("now", 4, torch.tensor(True), network)
    torch.nn.init.zeros_(network.weight)
    snapshots.first("now", 5, torch.tensor(True), network)
    again = Snapshots()
    again.load_state_dict(snapshots.state_dict())
    assert again.moments["now"].step == 4
    assert torch.equal(again.moments["now"].kept["weight"], weight)


def test_a_run_and_its_recorded_copies_are_drawn_alike(drawn):
    """What `lab.bench.record --weights` writes."""
    assert main(*TINY, "--name", "new") == 0
    new = figure("linear_regions/new", "half_width=0.3")
    assert "memorised" in moments_of(RUNS / "new")
    assert record.main([str(RUNS / "new"), "--to", "results", "--weights"]) == 0
    assert not Path("results/linear_regions/new/checkpoint.pt").exists()
    for each in RUNS.glob("figure_1*"):
        each.unlink()
    copies = figure("results/linear_regions/new", "half_width=0.3", "--name", "figure_1,kept")
    assert (RUNS / "figure_1,kept.csv").exists()
    key = lambda row: (row["moment"], row["sample"])  # noqa: E731
    assert sorted(copies, key=key) == sorted(new, key=key)
    assert [picture.moment for picture in drawn[-1][2]] == ["memorised", "last"]


def test_runs_that_cannot_be_drawn(capsys):
    def complaint(*words):
        assert report.main(["figure_1", *words]) == 2
        return capsys.readouterr().err.strip()

    assert "there is no finished run inhibiting_generalisation/default or" in complaint()
    assert complaint("nowhere").endswith("'nowhere' holds none")
    tiny = ("--dataset", "digits", "--points", 30, "--width", 4, "--device", "cpu", "--steps", 1)
    assert main(*tiny, "--name", "a") == 0
    assert main(*tiny[:3], 40, *tiny[4:], "--name", "b") == 0
    a, b = "linear_regions/a", "linear_regions/b"
    assert "were trained on the same images" in complaint(a, b)
    content = torch.load(RUNS / "a/checkpoint.pt")
    del content["state"]["snapshots"]
    torch.save(content, RUNS / "a/checkpoint.pt")
    assert complaint(a).endswith("a keeps no states but the last")
    content = torch.load(RUNS / "b/checkpoint.pt")
    torch.save(content | {"finished": False}, RUNS / "b/checkpoint.pt")
    assert "b is not finished" in complaint(b)
    (RUNS / "b/checkpoint.pt").write_bytes(b"no checkpoint")
    assert "b/checkpoint.pt is damaged" in complaint(b)
    (RUNS / "b/checkpoint.pt").unlink()
    assert "cannot be read" in complaint(b)
    assert {path.name for path in RUNS.iterdir()} == {"a", "b"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("samples=0,1",), "samples takes three points for each plane, got 2"),
        (("samples=4,5,30",), "samples takes places from 0 to 29, got 30"),
        (("samples=4,5,-1",), "samples takes a whole number of at least 0"),
        (("samples=7,7,3",), "samples 7 7 3: a plane takes two"),
        (("half_width=0",), "half_width takes a number above 0, got '0'"),
        (("most_regions=2",), "the slice holds more than 2 regions; take a smaller slice"),
    ],
)
def test_bad_words_of_a_figure_are_one_line(words, complaint, capsys):
    tiny = ("--dataset", "digits", "--points", 30, "--width", 4, "--device", "cpu", "--steps", 1)
    assert main(*tiny, "--name", "a") == 0
    capsys.readouterr()
    assert report.main(["figure_1", "linear_regions/a", *words]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert complaint in error
    assert {path.name for path in RUNS.iterdir()} == {"a"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--samples", 0, 1), "--samples takes three points for each plane, got 2"),
        (("--samples",), "--samples takes a whole number of at least 0, got nothing"),
        (("--samples", 4, 5, 60), "--samples takes places from 0 to 59, got 60"),
        (("--samples", 4, 5, -1), "--samples takes a whole number of at least 0, got '-1'"),
        (
            ("--samples", 0, 1, 2, 7, 7, 3),
            "--samples 7 7 3: a plane takes two",
        ),
        (("--half_width", 0), "--half_width takes a number above 0, got '0'"),
        (("--most_regions", 2), "the slice holds more than 2 regions; take a smaller slice"),
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
    with pytest.raises(SliceError, match=r"samples 0 1 4: .* not on one line"):
        planes(x, (0, 1, 2, 0, 1, 4))


def test_it_draws_the_runs_of_accelerating_grokking():
    words = ("--dataset", "digits", "--points", 60, "--width", 16, "--init_scale", 1, "--lr", 0.02)
    words = (*words, "--device", "cpu", "--steps", 300)
    assert accelerating_grokking.main([str(word) for word in words]) == 0
    (folder,) = Path("runs/accelerating_grokking").iterdir()
    assert "memorised" in moments_of(folder), "otherwise there is one moment only"
    steps = {int(row["step"]) for row in figure(folder, "half_width=1")}
    assert steps == {moments_of(folder)[moment].step for moment in ("memorised", "last")}


def test_figure_7s_runs_at_three_moments_and_the_same_training_here(drawn):
    words = ("--dataset", "digits", "--points", 260, "--width", 16, "--init_scale", 2, "--lr")
    words = (*words, 0.005, "--batch_size", 50, "--device", "cpu", "--steps", 600)
    for name, *level in (("default", "--jr", 0, "--jr_weight", 0.002), ("jr=None", "--jr", "none")):
        line = (*words, "--num_logs", 300, *level, "--name", name)
        assert inhibiting_generalisation.main([str(word) for word in line]) == 0
    there = moments_of("runs/inhibiting_generalisation/default")
    for name, samples in (("figure_1", 3), ("figure_11", 12)):
        rows = figure(name=name)
        assert {path.name for path in RUNS.glob(f"{name}.*")} == {f"{name}.csv", f"{name}.png"}
        x, drawn_points, pictures, _ = drawn.pop()
        assert (len(x), list(drawn_points)) == (260, list(range(samples)))
        assert {row["run"] for row in rows} == {"default", "jr=None"}
        assert {len(p.windows) for p in pictures} == {samples}
        pictures = [p for p in pictures if p.run == "default"]
        assert [p.moment for p in pictures] == ["memorised", "generalised", "last"]
        steps = [p.step for p in pictures]
        assert steps == [there[p.moment].step for p in pictures] == sorted(set(steps))
        of_default = [row for row in rows if row["run"] == "default"]
        assert len([row for row in of_default if "median" in row["sample"]]) == 3 * 4

    assert main(*words, "--jr", 0.002, "--num_logs", 2, "--name", "r") == 0
    here = moments_of(RUNS / "r")
    assert here["last"].step == 600
    for name, weight in there["last"].kept.items():
        torch.testing.assert_close(here["last"].kept[name], weight)


def test_an_aligned_network_says_so_beneath_its_centroids():
    x = 2.5 * torch.eye(3, 64, dtype=torch.float64)
    x[:, :3] -= 0.5  # so that no point is on the side of another's unit
    network = relu_mlp_of({"0.weight": x, "2.weight": torch.ones(10, 3, dtype=torch.float64)})
    found = windows(network, x, (0, 1, 2), 0.5, 100)
    for point, one in zip(x, found, strict=True):
        torch.testing.assert_close(one.centroid(), 10 * point)
    picture = _regions.Picture("r", "r", "last", 1, network, found, [])
    drawing = _regions.figure(x, (0, 1, 2), [picture], "python report.py figure_1")
    axes = [a for a in drawing.axes if a.get_xlabel().startswith("centroid")]
    assert [a.get_xlabel() for a in axes] == ["centroid,\ncosine 1.00"] * 3
    for shown, point in zip(axes, x, strict=True):
        (image,) = shown.images
        values = torch.as_tensor(image.get_array())
        assert values.shape == (8, 8) and values.argmax() == point.argmax()
        assert image.norm.vmin == -image.norm.vmax
        red, _, blue, _ = image.cmap(image.norm(values.max()))
        assert red > blue
