"""inhibiting_generalisation.py as users run it."""

from functools import partial
from pathlib import Path

import pytest
import torch

import inhibiting_generalisation
import report
from helpers import main_of, run
from lab.bench.files import read_metrics
from lab.bench.plots import COLOURS, Figure
from lab.bench.runs import Run
from lab.bench.seeds import generator
from lab.networks.mlp import relu_mlp
from utils import Centroids, JacobianRegulariser, jacobian

TINY = ("--dataset", "digits", "--points", 60, "--width", 12, "--batch_size", 24, "--device", "cpu")
COLUMNS = "step,loss,train_accuracy,test_accuracy,centroid_norm,alignment,jacobian_norm"
main = partial(main_of(inhibiting_generalisation), *TINY)


def test_the_command_users_type(tmp_path):
    words = (*TINY, "--jr", 5.0, "--steps", 100, "--name", "r")
    done = run("inhibiting_generalisation.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/inhibiting_generalisation/r"
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    lines = (folder / "metrics.csv").read_text().splitlines()
    assert lines[0] == COLUMNS
    assert lines[-1].startswith("100,")


def test_the_level_is_held_and_zero_minimises():
    """With a heavy weight the mean norm goes to the level from above and from below."""
    words = ("--weight_decay", 0, "--lr", 3e-3, "--steps", 600)
    last = {}
    for level in ("0.0", "5.0", "40.0", "none"):
        term = () if level == "none" else ("--jr_weight", 10, "--num_projections", "exact")
        name = f"level {level}"
        assert main("--jr", level, *term, *words, "--init_scale", 3, "--name", name) == 0
        metrics = read_metrics(f"runs/inhibiting_generalisation/{name}")
        last[level] = metrics["jacobian_norm"][-1]
    start = metrics["jacobian_norm"][0]
    assert 5 < start < 40, "otherwise one of the two levels is not on the other side"
    assert abs(last["5.0"] - 5) < 0.5
    assert abs(last["40.0"] - 40) < 2
    assert last["0.0"] < 1 < last["none"]


def test_columns_are_those_of_the_final_network():
    assert main("--steps", 20, "--name", "one") == 0
    o = inhibiting_generalisation.parse(
        inhibiting_generalisation.Options, None, [*map(str, TINY), "--steps", "20", "--name", "one"]
    )
    run = Run("inhibiting_generalisation", o)
    network = relu_mlp([64, 12, 12, 12, 10], generator(0))
    network.load_state_dict(run.saved_state("network"))
    data = inhibiting_generalisation.images.load(o)
    network.to(data.x)
    row = run.rows[-1]
    assert row["jacobian_norm"] == pytest.approx(
        JacobianRegulariser(network, None)(data.x).item(), rel=1e-5
    )
    rows = jacobian(network, data.x).sum(1)
    assert row["centroid_norm"] == pytest.approx(rows.norm(dim=1).mean().item(), rel=1e-5)
    assert row["alignment"] == pytest.approx(
        Centroids(network)(data.x).alignments.mean().item(), rel=1e-5
    )


def test_a_huge_gradient_moves_the_weights_no_further_than_the_clip_allows(monkeypatch):
    """Plain descent, so that an update is the gradient times the learning rate."""

    def descent(parameters, lr, weight_decay, fused):
        return torch.optim.SGD(parameters, lr)

    monkeypatch.setattr(torch.optim, "AdamW", descent)
    moved = {}
    for clip in (0.5, 0):
        words = ("--steps", 1, "--lr", 1e-6, "--init_scale", 30, "--dtype", "float64")
        assert main(*words, "--clip", clip, "--name", f"clip {clip}") == 0
        after = torch.load(
            f"runs/inhibiting_generalisation/clip {clip}/checkpoint.pt", weights_only=True
        )["state"]["network"]
        before = relu_mlp([64, 12, 12, 12, 10], generator(0, "weights"), 30.0).state_dict()
        differences = [(after[key] - before[key]).flatten() for key in before]
        moved[clip] = torch.cat(differences).norm().item() / 1e-6
    assert moved[0.5] == pytest.approx(0.5, rel=1e-5)
    assert moved[0] > 1000 * moved[0.5]


def test_figure_7_draws_a_colour_a_level_and_a_line_a_seed(capsys, monkeypatch):
    words = ("dataset=digits", "points=60", "width=12", "batch_size=24", "steps=5")
    assert report.main(["figure_7", *words]) == 2
    said = f"no finished run of inhibiting_generalisation.py with {' '.join(words)} in"
    assert said in capsys.readouterr().err
    for level, seed in (("none", 0), ("5.0", 0), ("0.0", 1), ("0.0", 0)):
        assert main("--jr", level, "--steps", 5, "--seed", seed) == 0
    assert main("--steps", 5, "--clip", 0) == 0
    drawn, savefig = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *a, **k: [drawn.append(figure), savefig(figure, *a, **k)]
    )
    capsys.readouterr()
    assert report.main(["figure_7", *words]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.name == f"figure_7,{','.join(words)}.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    drawing = drawn.pop()
    accuracies, norms = drawing.axes[:2]
    named, styles = (
        [text.get_text() for text in legend.get_texts()]
        for legend in (drawing.legends[0], accuracies.get_legend())
    )
    assert named == ["minimised", "held at 5.0", "without the term"]
    assert styles == ["test accuracy", "train accuracy"]  # solid and dashed, as in all scripts
    colours = [line.get_color() for line in norms.lines]
    assert colours == [COLOURS[0]] * 2 + [COLOURS[1], COLOURS[2]]  # two seeds of the first
    name = "dataset=digits,points=60,width=12,batch_size=24,steps=5"
    for line, seed in zip(norms.lines, ("", ",seed=1"), strict=False):
        metrics = read_metrics(f"runs/inhibiting_generalisation/{name}{seed}")
        assert line.get_ydata().tolist() == metrics["centroid_norm"].tolist()
    assert report.main(["figure_7", *words, "clip=0"]) == 0
    assert len(drawn.pop().axes[1].lines) == 1
