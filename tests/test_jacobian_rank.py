"""jacobian_rank.py as users run it, its measurements against singular values by hand."""

from pathlib import Path

import numpy
import pytest
import torch

import jacobian_rank
import report
import sweep
from helpers import ROOT, main_of, run
from lab.bench.files import read_metrics
from lab.bench.plots import Figure
from lab.data import images
from lab.data.images import ImageOptions

TINY = ("--dataset", "digits", "--points", 50, "--width", 8, "--batch_size", 16, "--device", "cpu")
NAME = "dataset=digits,points=50,{}width=8,batch_size=16,{}"
COLUMNS = "step,loss,train_accuracy,test_accuracy,pc1,pc1_min,jacobian_norm,alignment"
RUNS = Path("runs/jacobian_rank")
main = main_of(jacobian_rank)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take most of the time of so small a run, and one test has them drawn."""
    monkeypatch.setattr(jacobian_rank, "metric_panels", lambda *drawing: Figure())


def folder(choice="", rest="steps=30"):
    return RUNS / NAME.format(choice, rest).strip(",")


FOUR = [
    folder(choice)
    for choice in ("", "jr=0.0001,", "loss_fn=CrossEntropy,", "loss_fn=CrossEntropy,jr=0.001,")
]
LABELS = [
    "MSE, weight decay", "MSE, weight decay + GrokAlign (λ_Jac 0.0001)",
    "CrossEntropy, weight decay", "CrossEntropy, weight decay + GrokAlign (λ_Jac 0.001)",
]  # fmt: skip


def sweep_words(*words):
    """The sweep's grid, of tiny runs and of one seed."""
    return [str(word) for word in (ROOT / "configs/figure_2.yaml", "--seed", 0, *TINY, *words)]


def test_figure_2_is_the_sweep_s_four_runs_in_one_figure(tmp_path, monkeypatch, capsys):
    ended = run("sweep.py", *sweep_words("--steps", 30), "--workers", 2, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == list(map(str, FOUR))
    assert sorted(RUNS.iterdir()) == sorted(FOUR)
    for each in FOUR:
        lines = (each / "metrics.csv").read_text().splitlines()
        assert lines[0] == COLUMNS
        assert lines[-1].startswith("30,")
        assert (each / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert len({(each / "metrics.csv").read_bytes() for each in FOUR}) == 4
    before = [(each / "checkpoint.pt").stat().st_mtime_ns for each in FOUR]
    drawn, savefig = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *a, **k: [drawn.append(figure), savefig(figure, *a, **k)]
    )
    options = ("dataset=digits", "points=50", "width=8", "batch_size=16", "steps=30")
    assert report.main(["figure_2", *options]) == 0
    *printed, path = capsys.readouterr().out.splitlines()
    assert Path(path).read_bytes().startswith(b"\x89PNG")
    assert before == [(each / "checkpoint.pt").stat().st_mtime_ns for each in FOUR]
    for axes, column in zip(drawn[0].axes, ("pc1", "jacobian_norm", "test_accuracy"), strict=True):
        assert [line.get_label() for line in axes.lines] == LABELS
        for line, each in zip(axes.lines, FOUR, strict=True):
            assert line.get_ydata().tolist() == read_metrics(each)[column].tolist()
    rows = [row.strip("| ").split(" | ") for row in printed if row.startswith(("| MSE", "| Cross"))]
    assert [row[0] for row in rows] == LABELS
    for row, each in zip(rows, FOUR, strict=True):
        pc1 = read_metrics(each)["pc1"]
        assert row[1:] == ["1", f"{pc1[0]:.3f}", f"{pc1[-1]:.3f}"]
    # Words choose among the runs.
    drawn.clear()
    for words, lines in (("loss_fn=MSE", LABELS[:2]), ("jr=0", LABELS[::2]), ("seed=0", LABELS)):
        assert report.main(["figure_2", *options, words]) == 0
        assert [line.get_label() for line in drawn.pop().axes[0].lines] == lines
    for words in (["seed=1"], ["weight_decay=0"], ["width=9"]):
        assert report.main(["figure_2", *options, *words]) == 2
        said = "there is no finished run of jacobian_rank.py with dataset=digits"
        assert said in capsys.readouterr().err


def test_seeds_of_one_run_share_a_label_and_are_counted(capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: drawn.append(figure))
    for seed in (0, 1):
        assert main(*TINY, "--steps", 3, "--seed", seed) == 0
    drawn.clear()
    capsys.readouterr()
    words = ("dataset=digits", "points=50", "width=8", "batch_size=16", "steps=3")
    assert report.main(["figure_2", *words]) == 0
    assert [line.get_label()[:3] for line in drawn[0].axes[0].lines] == ["MSE", "_ch"]
    assert "| MSE, weight decay | 2 | " in capsys.readouterr().out


def test_the_grid_of_figure_2_is_the_paper_s_four_runs_of_three_seeds():
    jobs = sweep.jobs_in(sweep.grids_of(str(ROOT / "configs/figure_2.yaml")), {})
    chosen = {(job.options.loss_fn, job.options.jr, job.options.seed) for job in jobs}
    four = (("MSE", 0.0), ("MSE", 1e-4), ("CrossEntropy", 0.0), ("CrossEntropy", 1e-3))
    assert chosen == {(loss, jr, seed) for loss, jr in four for seed in range(3)}
    assert len({job.folder for job in jobs}) == 12


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
