"""jacobian_rank.py as users run it, its measurements against singular values by hand."""

import signal
from pathlib import Path

import numpy
import pytest
import torch

import jacobian_rank
from helpers import interrupt, run
from lab import images
from lab.images import ImageOptions
from lab.runs import read_metrics

TINY = ("--dataset", "digits", "--points", 50, "--width", 8, "--batch_size", 16, "--device", "cpu")
NAME = "dataset=digits,points=50,{}width=8,batch_size=16,{}"
COLUMNS = "step,loss,train_accuracy,test_accuracy,pc1,pc1_min,jacobian_norm,alignment"
RUNS = Path("runs/jacobian_rank")


def main(*words):
    return jacobian_rank.main([str(word) for word in words])


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take most of the time of so small a run, and one test has them drawn."""
    monkeypatch.setattr(jacobian_rank, "figure", lambda whole, runs: None)


def folder(choice="", rest=""):
    return RUNS / NAME.format(choice, rest).strip(",")


FOUR = [
    folder(f"loss_fn={choice},", "steps=30")
    for choice in (
        "MSE,jr=0.0", "MSE,jr=0.0001", "CrossEntropy,jr=0.0", "CrossEntropy,jr=0.001",
    )
]  # fmt: skip


def test_the_command_users_type_trains_four_runs_and_then_finds_them(tmp_path, monkeypatch):
    done = run("jacobian_rank.py", *TINY, "--steps", 30, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    whole = folder(rest="steps=30")
    assert done.stdout.splitlines() == [str(whole)]
    assert sorted(RUNS.iterdir()) == sorted([whole, *FOUR])
    for each in FOUR:
        lines = (each / "metrics.csv").read_text().splitlines()
        assert lines[0] == COLUMNS
        assert lines[-1].startswith("30,")
    assert len({(each / "metrics.csv").read_bytes() for each in FOUR}) == 4
    for each in (whole, *FOUR):
        assert (each / "figure.png").read_bytes().startswith(b"\x89PNG")
    before = [(each / "checkpoint.pt").stat().st_mtime_ns for each in FOUR]
    drawn = []
    monkeypatch.setattr(jacobian_rank, "figure", lambda *drawing: drawn.append(drawing))
    assert main("--config", whole / "config.yaml") == 0
    assert before == [(each / "checkpoint.pt").stat().st_mtime_ns for each in FOUR]
    assert drawn[-1][0].folder == whole
    assert [each.folder for each in drawn[-1][1]] == FOUR


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("words", "trained", "printed"),
    [
        (("--loss_fn", "MSE"), FOUR[:2], folder("loss_fn=MSE,", "steps=30")),
        (("--jr", 0), FOUR[::2], folder("jr=0.0,", "steps=30")),
        (("--loss_fn", "CrossEntropy", "--jr", "1e-3"), FOUR[3:], FOUR[3]),
    ],
)
def test_an_option_that_is_given_leaves_the_other_runs_out(words, trained, printed, capsys):
    assert main(*TINY, *words, "--steps", 30, "--num_logs", 64) == 0
    assert capsys.readouterr().out.strip() == str(printed)
    assert {each.parent for each in RUNS.glob("*/metrics.csv")} == set(trained)


@pytest.mark.usefixtures("undrawn")
def test_killed_and_continued_is_bit_for_bit_the_same(tmp_path):
    words = (*TINY, "--loss_fn", "CrossEntropy", "--jr", 0.1, "--steps", 200)
    cut = RUNS / "cut"
    killed = interrupt(
        *("jacobian_rank.py", *words, "--checkpoint_every", 0, "--name", "cut"),
        folder=tmp_path, run_folder=tmp_path / cut, rows=12, signal=signal.SIGKILL,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert 0 < read_metrics(cut)["step"][-1] < 200
    assert main(*words, "--name", "cut") == 0
    assert "at_step" in (cut / "config.yaml").read_text()
    assert main(*words, "--name", "whole") == 0
    assert (cut / "metrics.csv").read_bytes() == (RUNS / "whole/metrics.csv").read_bytes()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("loss_fn", ["MSE", "CrossEntropy"])
def test_last_row_is_what_the_trained_network_has(loss_fn):
    words = ("--loss_fn", loss_fn, "--jr", 0.01, "--pc1_points", 7, "--steps", 40)
    assert main(*TINY, *words, "--dtype", "float64", "--name", "r") == 0
    last = {column: values[-1] for column, values in read_metrics(RUNS / "r").items()}
    weights = torch.load(RUNS / "r/checkpoint.pt")["state"]["network"].values()
    x, y, _, _ = images.load(ImageOptions(dataset="digits", points=50, dtype="float64"))
    pc1, norms, outputs = [], [], []
    for point in x:
        rows = torch.eye(64, dtype=torch.float64)  # of the map up to here, J = W₄ D₃ W₃ … W₁
        *hidden, last_layer = weights
        for weight in hidden:
            rows = weight @ rows
            rows = (rows @ point > 0)[:, None] * rows
        rows = last_layer @ rows
        sigma = numpy.linalg.svd(rows.numpy(), compute_uv=False)
        pc1.append(sigma[0] ** 2 / (sigma**2).sum())
        norms.append((sigma**2).sum() ** 0.5)
        outputs.append(rows @ point)
    outputs = torch.stack(outputs)
    assert last["pc1"] == pytest.approx(numpy.mean(pc1[:7]))
    assert last["pc1_min"] == pytest.approx(min(pc1[:7]))
    assert last["jacobian_norm"] == pytest.approx(numpy.mean(norms[:7]))
    assert last["train_accuracy"] == pytest.approx((outputs.argmax(1) == y).double().mean())
    by_hand = {
        "MSE": (outputs - torch.eye(10, dtype=torch.float64)[y]).square().mean(),
        "CrossEntropy": -outputs.softmax(1)[range(50), y].log().mean(),
    }
    assert last["loss"] == pytest.approx(by_hand[loss_fn])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("loss_fn", ["MSE", "CrossEntropy"])
def test_regulariser_lowers_the_norm_from_the_same_start(loss_fn):
    norms = []
    for jr in (0, 1):
        words = ("--loss_fn", loss_fn, "--jr", jr, "--steps", 60, "--name", jr)
        assert main(*TINY, *words) == 0
        norms.append(read_metrics(RUNS / str(jr))["jacobian_norm"])
    assert norms[0][0] == norms[1][0]
    assert norms[1][-1] < 0.5 * norms[0][-1]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--loss_fn", "hinge"), "--loss_fn takes one of MSE, CrossEntropy, or none, got 'hinge'"),
        (("--jr", -1), "--jr takes a number of at least 0, or none, got '-1'"),
        (("--batch_size", 0), "--batch_size takes a whole number of at least 1, or none, got '0'"),
        (("--pc1_points", 0), "--pc1_points takes a whole number of at least 1, got '0'"),
        (("--depth", 1), "--depth takes a whole number of at least 2, got '1'"),
        (("--lr", 0), "--lr takes a number above 0, got '0'"),
    ],
)
def test_bad_input_is_named_before_a_folder_is_made(words, complaint, capsys):
    with pytest.raises(SystemExit) as exit:
        main(*TINY, *words)
    assert exit.value.code == 2
    error = capsys.readouterr().err.strip()
    assert complaint in error and "\n" not in error
    assert not Path("runs").exists()
