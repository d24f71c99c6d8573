"""Parity and copying: data, losses and margins by a second route, a run that groks, the command."""

import csv
import math
import signal
from pathlib import Path

import pytest
import torch
import yaml

import delayed_tasks
from delayed_tasks import Copy, Options, Parity, points
from helpers import interrupt, run
from lab.batches import minibatch
from lab.runs import first_step
from lab.seeds import generator
from utils import Centroids

COLUMNS = [
    "step", "loss", "train_accuracy", "test_accuracy", "parameter_norm", "jacobian_norm",
    "alignment", "margin_alignment", "test_margin_alignment",
]  # fmt: skip
SMALL = {
    "parity": ["--n", "12", "--width", "20", "--samples", "70", "--test_samples", "30"],
    "copy": ["--task", "copy", "--samples", "10", "--test_samples", "20", "--symbols", "5",
             "--length", "3", "--d_model", "8", "--heads", "2", "--d_mlp", "8"],
}  # fmt: skip


def main(arguments):
    return delayed_tasks.main([*arguments, "--device", "cpu"])


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def parity(**changes):
    o = Options(**({"n": 10, "k": 3, "width": 16, "samples": 20, "test_samples": 30} | changes))
    return o, Parity(o)


def copying(**changes):
    sizes = {"symbols": 5, "length": 3, "d_model": 8, "heads": 2, "d_mlp": 8}
    o = Options(task="copy", samples=20, test_samples=30, **(sizes | changes))
    return o, Copy(o).double()


def test_points_are_all_different_and_can_be_all_there_are():
    o = Options(task="copy", symbols=3, length=4, samples=41, test_samples=40)
    drawn = points(o, "data")
    assert drawn.shape == (81, 4)
    assert sorted(map(tuple, drawn.tolist())) == sorted(
        tuple(i // 3**c % 3 for c in (3, 2, 1, 0)) for i in range(81)
    )
    assert torch.equal(drawn, points(o, "data"))
    assert not torch.equal(drawn, points(o, "random labels"))


def test_points_are_uniform():
    drawn = points(Options(samples=5000, test_samples=5000), "data").double()
    assert (drawn.mean(0) - 0.5).abs().max() < 0.025  # five standard deviations of a fair coin
    pairs = (2 * drawn - 1).T @ (2 * drawn - 1) / len(drawn)
    assert (pairs - torch.eye(40)).abs().max() < 0.06


def test_parity_labels_are_the_product_of_the_first_k_signs():
    o, network = parity(k=4)
    drawn = points(o, "data")
    x, y = network.inputs(drawn), network.labels(drawn)
    assert set(x.flatten().tolist()) == {-1, 1}
    assert y.tolist() == [math.prod(row[:4]) for row in x.tolist()]


def test_the_copier_reads_a_sequence_then_blanks_and_is_asked_for_the_sequence():
    o, network = copying()
    drawn = points(o, "data")
    x, y = network.inputs(drawn), network.labels(drawn)
    assert x.shape == (50, 6)
    assert torch.equal(x[:, :3], drawn) and (x[:, 3:] == 5).all() and torch.equal(y, drawn)
    outputs = network(network.embed(x)).reshape(50, 3, 5)
    assert torch.equal(outputs, network.transformer(x, last=3))
    # The logits of the i-th blank are the i-th answer's.
    right = torch.nn.functional.one_hot(y, 5).double()
    assert network.correct(right.flatten(1), y).all()
    assert not network.correct(right.roll(1, dims=2).flatten(1), y).any()


def test_losses_from_their_definitions():
    o, network = parity()
    outputs, y = torch.tensor([2.0, 0.5, -0.5]), torch.tensor([1, 1, 1])
    assert network.loss(outputs, y).item() == pytest.approx((0 + 0.5 + 1.5) / 3)
    assert network.correct(outputs, y).flatten().tolist() == [True, True, False]
    o, network = copying()
    y = points(o, "data")
    outputs = torch.randn(50, 15, dtype=torch.float64, generator=generator(0, "o"))
    expected = []
    for row, answer in zip(outputs.reshape(50, 3, 5).tolist(), y.tolist(), strict=True):
        for logits, symbol in zip(row, answer, strict=True):
            expected.append(math.log(sum(map(math.exp, logits))) - logits[symbol])
    assert network.loss(outputs, y).item() == pytest.approx(sum(expected) / 150, rel=1e-12)


def test_margins_from_their_definition_and_free_of_what_cross_entropy_ignores():
    o, network = copying()
    y = points(o, "data")
    outputs = torch.randn(50, 15, dtype=torch.float64, generator=generator(0, "o"))
    expected = [
        sum(logits[s] - sum(logits) / 5 for logits, s in zip(row, answer, strict=True))
        for row, answer in zip(outputs.reshape(50, 3, 5).tolist(), y.tolist(), strict=True)
    ]
    margins = network.margins(outputs, y)
    torch.testing.assert_close(margins, torch.tensor(expected, dtype=torch.float64))
    # The same constant on all logits of an answer: a change that the loss and the margin do not
    # see, but the sum of the logits does.
    constants = torch.randn(50, 3, 1, dtype=torch.float64, generator=generator(0, "c"))
    shifted = (outputs.reshape(50, 3, 5) + constants).flatten(1)
    torch.testing.assert_close(network.margins(shifted, y), margins)
    torch.testing.assert_close(network.loss(shifted, y), network.loss(outputs, y))
    assert (shifted.sum(1) - outputs.sum(1)).abs().min() > 1e-3


def test_the_margin_of_a_scalar_output_has_the_alignment_of_its_centroid_times_the_label():
    o, network = parity()
    drawn = points(o, "data")
    x, y = network.embed(network.inputs(drawn)), network.labels(drawn)
    of_margin = Centroids(lambda p: network.margins(network(p), y))(x).alignments
    torch.testing.assert_close(of_margin, y * Centroids(network)(x).alignments)


def test_every_epoch_holds_every_point_once_in_an_order_of_its_own():
    def batch(step):
        return minibatch(0, step, samples=70, size=32)

    epochs = [torch.cat([batch(3 * e + i) for i in range(3)]).tolist() for e in range(3)]
    assert [len(batch(step)) for step in range(4)] == [32, 32, 6, 32]
    assert all(sorted(epoch) == list(range(70)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert torch.equal(batch(1), torch.tensor(epochs[0][32:64]))  # after going back
    assert minibatch(0, 5, 70, None) == minibatch(0, 5, 70, 70) == slice(None)


def test_one_update_of_parity_is_the_hinge_loss_and_the_jacobian_norm_by_hand(tmp_path):
    arguments = [*SMALL["parity"], "--steps", "1", "--jr", "0.5", "--batch", "70"]
    assert main([*arguments, "--dtype", "float64", "--out_dir", str(tmp_path), "--name", "r"]) == 0
    saved = torch.load(tmp_path / "delayed_tasks" / "r" / "checkpoint.pt", weights_only=True)
    o = Options(n=12, width=20, samples=70, test_samples=30)
    network = Parity(o)
    drawn = points(o, "data")[:70]
    x, y = 2.0 * drawn.double() - 1, (2 * drawn - 1)[:, :3].prod(1)
    total = 0
    for point, label in zip(x, y, strict=True):
        before = network.w1 @ point + network.b
        hinge = (1 - label * (network.w2 @ before.clamp(min=0))).clamp(min=0)
        gradient = ((before > 0).double() * network.w2) @ network.w1
        total = total + (hinge + 0.5 * gradient.square().sum().sqrt()) / 70
    total.backward()
    for name, parameter in network.named_parameters():
        expected = parameter - 0.1 * (parameter.grad + 0.01 * parameter)
        torch.testing.assert_close(saved["state"]["network"][name], expected.detach())


@pytest.fixture(scope="module")
def grokked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grokked")
    arguments = ["--n", "20", "--width", "200", "--samples", "300", "--steps", "4000"]
    assert main([*arguments, "--out_dir", str(folder), "--name", "r"]) == 0
    return folder / "delayed_tasks" / "r"


def test_parity_is_memorised_then_generalised_and_the_gradient_becomes_relevant(grokked):
    results = yaml.safe_load((grokked / "config.yaml").read_text())["results"]
    assert 3 * results["memorised_at"] < results["grokked_at"] < 4000
    table = rows(grokked)
    memorised = next(row for row in table if row["step"] == results["memorised_at"])
    assert memorised["test_accuracy"] < 0.6 and memorised["relevant_share"] < 0.3
    last = table[-1]
    assert last["test_accuracy"] > 0.98 and last["relevant_share"] > 0.9
    assert last["test_margin_alignment"] > 0.1 > 0.03 > memorised["test_margin_alignment"]
    assert all(row["alignment"] == pytest.approx(row["margin_alignment"]) for row in table)


def test_the_events_are_the_first_measurements_above_their_levels(grokked):
    results = yaml.safe_load((grokked / "config.yaml").read_text())["results"]
    table = rows(grokked)
    assert results["memorised_at"] == next(r["step"] for r in table if r["train_accuracy"] > 0.99)
    assert results["grokked_at"] == next(r["step"] for r in table if r["test_accuracy"] > 0.95)
    columns = {key: torch.tensor([r[key] for r in table]).numpy() for key in table[0]}
    assert first_step(columns, "test_accuracy", 1.5) is None


def test_random_labels_are_independent_of_the_points_and_the_same_points_remain(tmp_path):
    arguments = ["--steps", "0", "--out_dir", str(tmp_path), "--n", "40", "--random_labels"]
    assert main([*arguments, "--name", "r"]) == 0
    o = Options(random_labels=True)
    network = Parity(o)
    true, other = (network.labels(points(o, use)) for use in ("data", "random labels"))
    assert abs((true * other).double().mean()) < 0.1
    row = rows(tmp_path / "delayed_tasks" / "r")[0]
    outputs = network(network.embed(network.inputs(points(o, "data")))).sign()
    assert row["train_accuracy"] == pytest.approx((outputs == other)[:1000].double().mean().item())
    assert row["test_accuracy"] == pytest.approx((outputs == other)[1000:].double().mean().item())


def test_the_command_that_a_user_types(tmp_path):
    words = (*SMALL["copy"], "--steps", "20", "--jr", "0.01", "--device", "cpu")
    done = run("delayed_tasks.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / done.stdout.strip().splitlines()[-1]
    files = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoint.pt", "figure.png"} <= files
    check(folder, ["train_sequence_accuracy", "test_sequence_accuracy"], (0.001, 1.0, None))


def test_parity_writes_the_same_columns_and_one_of_its_own(tmp_path):
    arguments = [*SMALL["parity"], "--steps", "20", "--jr", "0.01", "--name", "r"]
    assert main([*arguments, "--out_dir", str(tmp_path)]) == 0
    check(tmp_path / "delayed_tasks" / "r", ["relevant_share"], (0.1, 0.01, 32))


def check(folder, own_columns, resolved):
    table = rows(folder)
    assert list(table[0]) == COLUMNS + own_columns
    assert (table[0]["step"], table[-1]["step"]) == (0, 20)
    assert all(math.isfinite(value) for row in table for value in row.values())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["lr"], config["weight_decay"], config["batch"]) == resolved
    assert set(config["results"]) == {"memorised_at", "grokked_at"}


@pytest.mark.parametrize("task", ["parity", "copy"])
def test_killed_and_continued_is_bit_for_bit_the_same(task, tmp_path):
    shared = [*SMALL[task], "--steps", "200", "--jr", "0.01", "--num_logs", "40"]
    killed = [*shared, "--checkpoint_every", "0", "--name", "killed"]
    folder = tmp_path / "runs" / "delayed_tasks" / "killed"
    ended = interrupt(
        *("delayed_tasks.py", "--device", "cpu", *killed),
        folder=tmp_path, run_folder=folder, rows=15, signal=signal.SIGKILL,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL
    assert 0 < rows(folder)[-1]["step"] < 200
    place = ["--out_dir", str(tmp_path / "runs")]
    assert main([*shared, *place, "--name", "killed"]) == 0
    assert main([*shared, *place, "--name", "straight"]) == 0
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["provenance"]["continued"][0]["at_step"] > 0
    straight = (folder.parent / "straight" / "metrics.csv").read_bytes()
    assert (folder / "metrics.csv").read_bytes() == straight


def test_a_run_is_named_by_what_differs_from_its_task():
    assert Options().run_name() == "default"
    assert Options(task="copy", lr=1e-3, steps=3000).run_name() == "task=copy"
    assert Options(task="copy", lr=0.1, batch=8).run_name() == "task=copy,batch=8,lr=0.1"
    assert Options(lr=1e-3, seed=2).run_name() == "lr=0.001,seed=2"


def test_a_runs_own_config_gives_the_same_run(tmp_path, capsys):
    place = ["--out_dir", str(tmp_path)]
    assert main([*SMALL["copy"], "--steps", "3", *place]) == 0
    folder = Path(capsys.readouterr().out.strip())
    before = (folder / "checkpoint.pt").stat().st_mtime_ns
    assert main(["--config", str(folder / "config.yaml")]) == 0
    assert Path(capsys.readouterr().out.strip()) == folder
    assert (folder / "checkpoint.pt").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--k", "41"], "--k takes a whole number of at most --n 40, got 41"),
        (["--n", "8"], "--samples and --test_samples take at most 256 together"),
        (["--task", "copy", "--heads", "5"], "--heads takes a divisor of --d_model 64, got 5"),
        (["--task", "copy", "--width", "9"], "--width belongs to --task parity, not to copy"),
        (["--beta2", "0.5"], "--beta2 belongs to --task copy, not to parity"),
        (["--task", "sorting"], "--task takes one of parity, copy, got 'sorting'"),
        (["--jr", "-1"], "--jr takes a number of at least 0"),
        (["--batch", "0"], "--batch takes a whole number of at least 1, or none, got '0'"),
    ],
)
def test_bad_input_is_named_before_a_folder_is_made(arguments, complaint, tmp_path, capsys):
    try:
        code = main([*arguments, "--out_dir", str(tmp_path / "runs")])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err.strip()
    assert code == 2 and complaint in error and "\n" not in error
    assert not (tmp_path / "runs").exists()
