"""accelerating_grokking.py as users run it, its closed form against autograd."""

import signal
from pathlib import Path

import numpy
import pytest
import torch
import yaml

import accelerating_grokking
from accelerating_grokking import LEVELS, METHOD, PAPER
from helpers import interrupt, run
from lab.closed_form import ClosedForm
from lab.errors import Interrupted
from lab.models import relu_mlp
from lab.runs import Run, first_step, read_metrics
from lab.seeds import generator
from lab.speedups import by_method, table_rows
from lab.training import train_together
from utils import JacobianRegulariser, jacobian

TINY = ("--dataset", "digits", "--points", 60, "--width", 12, "--batch_size", 24)
TINY = (*TINY, "--device", "cpu", "--check_every", 2)
COLUMNS = "step,loss,train_accuracy,test_accuracy,jacobian_norm,alignment"


def main(*words):
    return accelerating_grokking.main([str(word) for word in words])


def only_run():
    (folder,) = Path("runs/accelerating_grokking").iterdir()
    return folder


def test_the_command_users_type_also_after_a_kill(tmp_path):
    words = (*TINY, "--jr", 1e-3, "--grokfast", "--adv_training", "--jr_fraction", 0.5)
    words = (*words, "--steps", 120, "--stop_at", "none", "--checkpoint_every", 0)
    cut = tmp_path / "runs/accelerating_grokking/cut"
    killed = interrupt(
        *("accelerating_grokking.py", *words, "--name", "cut"),
        folder=tmp_path, run_folder=cut, rows=12, signal=signal.SIGKILL,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    done = run("accelerating_grokking.py", *words, "--name", "cut", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing after" in done.stderr
    assert done.stdout.splitlines()[-1] == "runs/accelerating_grokking/cut"
    assert (cut / "figure.png").read_bytes().startswith(b"\x89PNG")
    lines = (cut / "metrics.csv").read_text().splitlines()
    assert lines[0] == COLUMNS
    assert lines[-1].startswith("120,")
    assert main(*words, "--name", "whole") == 0
    assert (cut.parent / "whole/metrics.csv").read_bytes() == (cut / "metrics.csv").read_bytes()


@pytest.mark.parametrize("points", [None, 5])
@pytest.mark.parametrize("projections", [1, 3, None])
def test_closed_form_against_autograd(projections, points):
    network = relu_mlp([12, 9, 8, 7, 4], generator(0), 3.0)
    x = torch.randn(20, 12, dtype=torch.float64, generator=generator(1))
    y = torch.randint(0, 4, (20,), generator=generator(2))
    regulariser = JacobianRegulariser(network, projections, generator=generator(3))

    def loss_of(outputs):
        return torch.nn.functional.cross_entropy(outputs, y)

    loss, norm = loss_of(network(x)), regulariser(x[:points])
    expected = torch.autograd.grad(loss + 0.7 * norm, list(network.parameters()))
    regulariser.generator = generator(3)
    found = ClosedForm(regulariser).backward(x, loss_of, 0.7, points)
    for ours, theirs in zip(found, (loss, norm), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=0)
    for p, gradient in zip(network.parameters(), expected, strict=True):
        assert (p.grad - gradient).abs().max() < 1e-10 * gradient.abs().max()

    plain = torch.autograd.grad(loss_of(network(x)), list(network.parameters()))
    assert ClosedForm(regulariser).backward(x, loss_of)[1] is None
    for p, gradient in zip(network.parameters(), plain, strict=True):
        assert (p.grad - gradient).abs().max() < 1e-10 * gradient.abs().max()


@pytest.mark.parametrize("points", [None, 5])
@pytest.mark.parametrize("weight", [0.0, 0.7, lambda norm: 0.7 * (norm - 4.5).sign()])
def test_closed_form_of_several_networks_at_once(weight, points):
    networks = [relu_mlp([12, 9, 8, 4], generator(seed), 3.0) for seed in range(3)]
    x = torch.randn(3, 20, 12, dtype=torch.float64, generator=generator(1))

    def loss_of(outputs):
        return outputs.square().mean((-2, -1))

    alone, norms = [], []
    for r, network in enumerate(networks):
        regulariser = JacobianRegulariser(network, 2, generator=generator(3, r))
        _, norm = ClosedForm(regulariser).backward(x[r], loss_of, weight, points)
        alone.append([p.grad for p in network.parameters()])
        norms.append(norm)
    if callable(weight):
        assert min(norms) < 4.5 < max(norms), "otherwise one sign is not tried"
    together = ClosedForm(
        *(
            JacobianRegulariser(network, 2, generator=generator(3, r))
            for r, network in enumerate(networks)
        )
    )
    loss, norm = together.backward(x, loss_of, weight, points)
    for r, network in enumerate(networks):
        torch.testing.assert_close(loss[r], loss_of(network(x[r])).detach())
        if weight:
            torch.testing.assert_close(norm[r], norms[r])
        for p, gradient in zip(network.parameters(), alone[r], strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-10, atol=1e-13)
    with pytest.raises(ValueError, match="too many values"):
        ClosedForm(regulariser).backward(x, loss_of)
    # An optimiser that moves one network moves what the next pass uses.
    with torch.no_grad():
        next(networks[1].parameters()).mul_(2)
    again = together.backward(x, loss_of, weight, points)[0]
    assert again[1] != loss[1]
    assert again[0] == loss[0]


def test_closed_form_at_dead_points_and_two_layers():
    network = relu_mlp([5, 6, 3], generator(0))
    x = torch.randn(8, 5, dtype=torch.float64, generator=generator(1))
    x[:3] = 0  # no unit is active: the Jacobian is zero, and so is its gradient
    regulariser = JacobianRegulariser(network, None)
    (0.7 * regulariser(x)).backward()
    expected = [p.grad.clone() for p in network.parameters()]
    _, norm = ClosedForm(regulariser).backward(x, lambda f: 0 * f.sum(), 0.7)
    torch.testing.assert_close(norm, torch.linalg.matrix_norm(jacobian(network, x)).mean())
    for p, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "model",
    [
        torch.nn.Linear(3, 2, bias=False),
        torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2)),
        torch.nn.Sequential(*[torch.nn.Linear(3, 3, bias=False)] * 3),
    ],
)
def test_closed_form_refuses_other_networks(model):
    with pytest.raises(ValueError, match="Linear layers without biases and ReLUs"):
        ClosedForm(JacobianRegulariser(model))


@pytest.mark.parametrize("loss", ["MSE", "CrossEntropy"])
@pytest.mark.parametrize(
    "method",
    [
        ("--jr", 1e-2, "--num_projections", 2),
        ("--jr", 1e-2, "--num_projections", "exact", "--jr_fraction", 0.25),
        ("--grokfast", "--adv_training"),
    ],
)
def test_autograd_trains_the_same_network(loss, method):
    words = (*TINY, "--loss_fn", loss, *method, "--dtype", "float64", "--steps", 30)
    assert main(*words, "--name", "by_hand") == 0
    assert main(*words, "--name", "by_autograd", "--autograd") == 0
    found, expected = (
        read_metrics(f"runs/accelerating_grokking/{name}") for name in ("by_hand", "by_autograd")
    )
    assert expected["loss"][-1] < 0.9 * expected["loss"][0]
    for column in COLUMNS.split(","):
        assert found[column] == pytest.approx(expected[column], rel=1e-6, abs=1e-9)


def options(seed, *words):
    words = [*map(str, (*TINY, "--dtype", "float64", "--steps", 40, *words)), "--seed", str(seed)]
    return accelerating_grokking.parse(accelerating_grokking.Options, None, words)


METHODS = (
    ("--jr", 1e-2, "--num_projections", 2, "--jr_fraction", 0.5, "--adv_training"),
    ("--loss_fn", "MSE", "--grokfast"),
)


@pytest.mark.parametrize("method", METHODS)
def test_seeds_in_one_pass_are_those_trained_alone(method):
    """Also when one of them stops before the others, and when all are cut and continued."""
    level = 0.45  # of the test accuracy, which the seeds pass at different steps
    seeds = range(4)
    for name in ("alone", "together"):
        words = (*method, "--lr", 0.02, "--init_scale", 1, "--stop_at", level, "--out_dir", name)
        os = [options(seed, *words) for seed in seeds]
        if name == "alone":
            data = accelerating_grokking.images.load(os[0])
            for o in os:
                accelerating_grokking.train_networks([Run("accelerating_grokking", o)], data)
        else:
            for cut in (True, False):
                runs = [Run("accelerating_grokking", o) for o in os]
                assert {run.step for run in runs} == {0 if cut else 3}
                stop_early(runs, data) if cut else accelerating_grokking.train_networks(runs, data)
    lengths = set()
    for folder in Path("alone/accelerating_grokking").iterdir():
        alone = read_metrics(folder)
        together = read_metrics(Path("together/accelerating_grokking") / folder.name)
        lengths.add(int(alone["step"][-1]))
        for column, values in alone.items():
            numpy.testing.assert_allclose(together[column], values, rtol=1e-8, err_msg=column)
    assert len(lengths) > 1, "otherwise none stopped before the others"


def stop_early(runs, data):
    """Trains until a signal comes after three updates."""
    step = accelerating_grokking.Learner.step
    made = []

    def counted(self):
        step(self)
        made.append(self)
        if len(made) == 3 * len(runs):
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="and 3 more"):
        patch.setattr(accelerating_grokking.Learner, "step", counted)
        accelerating_grokking.train_networks(runs, data)


def test_runs_at_different_steps_are_not_trained_together():
    runs = [Run("accelerating_grokking", options(seed)) for seed in (0, 1)]
    runs[1].step = 2
    with pytest.raises(ValueError, match="the same step"):
        train_together(runs, None, [None] * 2, [{}] * 2)


def test_the_official_codes_protocol_is_the_default():
    o = accelerating_grokking.Options()
    assert (o.dtype, o.order, o.steps, o.loss_fn) == ("float64", "fixed", 400_000, "CrossEntropy")
    data = accelerating_grokking.images.load(options(0))
    learners = [accelerating_grokking.Learner(options(seed), data) for seed in (0, 1)]
    for learner in learners:
        assert torch.equal(learner.batch(0), data.x[: options(0).batch_size])
        assert torch.equal(learner.batch(3), learner.batch(0))  # of three updates an epoch
    shuffled = accelerating_grokking.Learner(options(0, "--order", "shuffled"), data)
    assert not torch.equal(shuffled.batch(3), shuffled.batch(0))


def test_grokfast_against_its_formula():
    p = torch.nn.Parameter(torch.zeros(3))
    filtered = accelerating_grokking.Grokfast([p])
    gradients = torch.randn(4, 3, generator=generator(0))
    average = gradients[0]
    for g in gradients:
        average = 0.8 * average + 0.2 * g
        p.grad = g.clone()
        filtered()
        torch.testing.assert_close(p.grad, g + 0.1 * average)


def test_noise_shrinks_with_the_train_accuracy():
    x = torch.zeros(200, 500, dtype=torch.float64)
    noise = accelerating_grokking.InputNoise(0, x)
    for accuracy, std in ((0.0, 0.06), (0.25, 0.045), (0.5, 0.03), (1.0, 0.03)):
        noise.adapt(torch.tensor(accuracy))
        assert noise(x, 7).std().item() == pytest.approx(std, rel=0.02)
    assert not torch.equal(noise(x, 7), noise(x, 8))


def test_muon_trains():
    assert main(*TINY, "--optimiser", "muon", "--jr", 1e-3, "--steps", 60) == 0
    m = read_metrics(only_run())
    assert m["loss"][-1] < 0.9 * m["loss"][0]


def test_it_stops_and_stores_the_steps():
    words = ("--points", 200, "--width", 24, "--steps", 1000, "--stop_at", 0.4, "--seeds", 2)
    assert main(*TINY, *words) == 0
    folders = sorted(Path("runs/accelerating_grokking").iterdir())
    assert [f.name.endswith("seed=1") for f in folders] == [False, True]
    for folder in folders:
        m = read_metrics(folder)
        results = yaml.safe_load((folder / "config.yaml").read_text())["results"]
        assert m["step"][-1] < 1000
        assert m["test_accuracy"][-1] > 0.4
        assert (m["test_accuracy"][:-1] <= 0.4).all()
        assert results["steps_to_0.2"] == first_step(m, "test_accuracy", 0.2)
        assert results["steps_to_0.85"] is None
        assert results["test_accuracy"] == m["test_accuracy"][-1]
        assert -1 <= results["smallest_row_cosine"] < 0 < results["largest_row_cosine"] <= 1
        assert 0 < results["seconds_per_step"] < 1
    first, second = ((f / "metrics.csv").read_bytes() for f in folders)
    assert first != second


def write_run(name, seed, steps, seconds_per_step, **options):
    o = accelerating_grokking.Options(seed=seed, **options)
    folder = Path("runs/accelerating_grokking") / name
    folder.mkdir(parents=True)
    config = {
        **o.identity(),
        "provenance": {"device": "cpu", "command": "", "finished": "now"},
        "results": {
            "steps_to_0.2": 100, "steps_to_0.85": steps, "seconds_per_step": seconds_per_step,
            "test_accuracy": 0.86, "smallest_row_cosine": -0.25, "largest_row_cosine": 0.5,
        },
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_tables_pair_runs_by_seed(capsys):
    write_run("a", 0, 8100, 0.01)
    write_run("b", 1, 4100, 0.01)
    write_run("c", 0, 1100, 0.02, jr=1e-3)
    write_run("d", 1, 1100, 0.02, jr=1e-3)
    write_run("e", 2, 1, 0.02, jr=1e-3)  # no baseline of this seed
    write_run("f", 0, None, 0.01, grokfast=True)  # did not arrive
    write_run("g", 0, 5, 0.01, width=7)  # another network
    folder = Path("runs/accelerating_grokking")
    found = by_method(folder, accelerating_grokking.Options(), METHOD)
    first, second = table_rows(found, LEVELS, PAPER)
    rows = {row["method"]: row for row in first}
    assert first[0]["method"] == "baseline"
    assert set(rows) == {"baseline", "grokfast", "jr=0.001"}
    assert rows["baseline"]["steps"] == "6100 ± 2828"
    assert rows["baseline"]["speed-up in steps"] == "–"
    assert rows["jr=0.001"]["speed-up in steps"] == "5.55 ± 2.57"  # 7.36 and 3.73
    assert rows["jr=0.001"]["speed-up in time"] == "2.77 ± 1.29"
    assert rows["jr=0.001"]["speed-up in phase time"] == "3.00 ± 1.41"  # 4 and 2
    assert rows["jr=0.001"]["paper, steps"] == "↓ 7.56 ± 0.82"
    assert rows["grokfast"]["reached 0.85"] == "0 of 1"
    assert rows["grokfast"]["speed-up in steps"] == "–"
    assert {row["runs"] for row in second} == {"2", "3", "1"}
    assert second[0]["test accuracy, %"] == "86.0 ± 0.0"
    assert main("--table") == 0
    printed = capsys.readouterr().out
    assert "| CrossEntropy | jr=0.001 | 3 of 3 |" in printed
    table = Path("runs/accelerating_grokking/table_1.csv").read_text().splitlines()
    assert len(table) == 4
    assert main("--table", "--width", 9) == 2
    assert "--table finds no finished run with these options" in capsys.readouterr().err


def test_bad_input(capsys):
    for words, message in (
        (("--jr_fraction", 0.25), "--num_projections and --jr_fraction take a --jr above 0"),
        (("--seeds", 2, "--name", "a"), "--seeds above 1 takes no --name"),
    ):
        assert main(*TINY, *words) == 2
        assert message in capsys.readouterr().err
    for words in (
        ("--loss_fn", "hinge"), ("--num_projections", 11), ("--jr", -1), ("--jr_fraction", 0),
        ("--stop_at", 1.5), ("--optimiser", "sgd"), ("--check_every", 0), ("--depth", 1),
        ("--order", "random"), ("--dtype", "float16"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as exit:
            main(*words)
        assert exit.value.code == 2
        assert f"{words[0]} takes" in capsys.readouterr().err
    assert not Path("runs").exists()
