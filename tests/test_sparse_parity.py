"""Sparse parity: data, loss and margin by a second route, a run that groks, the command."""

import math

import pytest
import torch
import yaml

import sparse_parity
from helpers import code_of, run
from lab.bench.draws import Batches
from lab.bench.files import first_step, read_rows
from lab.bench.seeds import generator
from lab.data.tasks import distinct_points, parity
from lab.measures.losses import hinge_loss
from sparse_parity import Network, Options
from utils import Centroids

COLUMNS = [
    "step", "loss", "train_accuracy", "test_accuracy", "parameter_norm", "jacobian_norm",
    "alignment", "margin_alignment", "test_margin_alignment", "relevant_share",
    "parity_share", "energy_degree_0", "energy_degree_1", "energy_degree_2", "energy_degree_3",
    "energy_higher", "mean_degree",
]  # fmt: skip
SMALL = ["--n", "12", "--width", "20", "--samples", "70", "--test_samples", "30"]


def main(arguments):
    return sparse_parity.main([*arguments, "--device", "cpu"])


def test_points_are_uniform():
    drawn = distinct_points(10_000, 2, 40, generator(0, "data")).double()
    assert (drawn.mean(0) - 0.5).abs().max() < 0.025  # five standard deviations of a fair coin
    pairs = (2 * drawn - 1).T @ (2 * drawn - 1) / len(drawn)
    assert (pairs - torch.eye(40)).abs().max() < 0.06


def test_labels_are_the_product_of_the_first_k_signs():
    x, y = parity(50, n=10, k=4, seed=0)
    assert set(x.flatten().tolist()) == {-1, 1}
    assert len({tuple(row) for row in x.tolist()}) == 50
    assert y.tolist() == [math.prod(row[:4]) for row in x.tolist()]


def test_the_loss_from_its_definition():
    outputs, y = torch.tensor([2.0, 0.5, -0.5]), torch.tensor([1, 1, 1])
    assert hinge_loss(outputs, y).item() == pytest.approx((0 + 0.5 + 1.5) / 3)
    assert hinge_loss(-outputs, -y).item() == hinge_loss(outputs, y).item()


def test_the_margin_of_a_scalar_output_has_the_alignment_of_its_centroid_times_the_label():
    network = Network(Options(n=10, width=16))
    x, y = (part.double() for part in parity(50, n=10, k=3, seed=0))
    of_margin = Centroids(lambda points: y * network(points))(x).alignments
    torch.testing.assert_close(of_margin, y * Centroids(network)(x).alignments)


def test_every_epoch_holds_every_point_once_in_an_order_of_its_own():
    batches = Batches(0, 70, 32, "shuffled", torch.device("cpu"))

    def batch(step):
        batches.at(step)
        return batches(torch.arange(70))

    epochs = [torch.cat([batch(3 * e + i) for i in range(3)]).tolist() for e in range(3)]
    assert [len(batch(step)) for step in range(4)] == [32, 32, 6, 32]
    assert all(sorted(epoch) == list(range(70)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert torch.equal(batch(1), torch.tensor(epochs[0][32:64]))  # after going back
    for size in (None, 70, 100):
        whole = Batches(0, 70, size, "shuffled", torch.device("cpu"))
        whole.at(5)
        assert torch.equal(whole(torch.arange(70)), torch.arange(70))


def test_one_update_is_the_hinge_loss_and_the_jacobian_norm_by_hand(tmp_path):
    arguments = [*SMALL, "--steps", "1", "--jr", "0.5", "--batch_size", "70"]
    assert main([*arguments, "--dtype", "float64", "--out_dir", str(tmp_path), "--name", "r"]) == 0
    saved = torch.load(tmp_path / "sparse_parity" / "r" / "checkpoint.pt", weights_only=True)
    network = Network(Options(n=12, width=20))
    drawn = distinct_points(100, 2, 12, generator(0, "data"))[:70]
    x, y = 2.0 * drawn.double() - 1, (2 * drawn - 1)[:, :3].prod(1)
    total = 0
    for point, label in zip(x, y, strict=True):
        before = network.w1 @ point + network.b
        margin = 1 - label * (network.w2 @ before.clamp(min=0))
        gradient = ((before > 0).double() * network.w2) @ network.w1
        total = total + (margin.clamp(min=0) + 0.5 * gradient.square().sum().sqrt()) / 70
    total.backward()
    for name, parameter in network.named_parameters():
        expected = parameter - 0.1 * (parameter.grad + 0.01 * parameter)
        torch.testing.assert_close(saved["state"]["network"][name], expected.detach())


@pytest.fixture(scope="module")
def grokked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grokked")
    arguments = ["--n", "20", "--width", "200", "--samples", "300", "--steps", "4000"]
    assert main([*arguments, "--out_dir", str(folder), "--name", "r"]) == 0
    return folder / "sparse_parity" / "r"


def test_parity_is_memorised_then_generalised_and_the_gradient_becomes_relevant(grokked):
    results = yaml.safe_load((grokked / "config.yaml").read_text())["results"]
    assert 3 * results["memorised_at"] < results["grokked_at"] < 4000
    table = read_rows(grokked)
    memorised = next(row for row in table if row["step"] == results["memorised_at"])
    assert memorised["test_accuracy"] < 0.6 and memorised["relevant_share"] < 0.3
    last = table[-1]
    assert last["test_accuracy"] > 0.98 and last["relevant_share"] > 0.9
    assert last["parity_share"] > 0.7 > 0.1 > memorised["parity_share"]
    assert last["test_margin_alignment"] > 0.1 > 0.03 > memorised["test_margin_alignment"]
    assert all(row["alignment"] == pytest.approx(row["margin_alignment"]) for row in table)


def test_the_events_are_the_first_measurements_above_their_levels(grokked):
    results = yaml.safe_load((grokked / "config.yaml").read_text())["results"]
    table = read_rows(grokked)
    assert results["memorised_at"] == next(r["step"] for r in table if r["train_accuracy"] > 0.99)
    assert results["grokked_at"] == next(r["step"] for r in table if r["test_accuracy"] > 0.95)
    columns = {key: torch.tensor([r[key] for r in table]).numpy() for key in table[0]}
    assert first_step(columns, "test_accuracy", 1.5) is None


def test_random_labels_are_independent_of_the_points_and_the_same_points_remain(tmp_path):
    arguments = ["--steps", "0", "--out_dir", str(tmp_path), "--n", "40", "--random_labels"]
    assert main([*arguments, "--name", "r"]) == 0
    o = Options(random_labels=True)
    network = Network(o)
    x, true = parity(2000, o.n, o.k, o.seed)
    same, other = parity(2000, o.n, o.k, o.seed, random_labels=True)
    assert torch.equal(x, same)
    assert abs((true * other).double().mean()) < 0.1
    row = read_rows(tmp_path / "sparse_parity" / "r")[0]
    right = (network(x.double()).sign() == other).double()
    assert row["train_accuracy"] == pytest.approx(right[:1000].mean().item())
    assert row["test_accuracy"] == pytest.approx(right[1000:].mean().item())


def test_the_command_that_a_user_types(tmp_path):
    words = (*SMALL, "--steps", "20", "--jr", "0.01", "--device", "cpu")
    done = run("sparse_parity.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / done.stdout.strip().splitlines()[-1]
    files = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoint.pt", "figure.png"} <= files
    table = read_rows(folder)
    assert list(table[0]) == COLUMNS
    assert {name for names in sparse_parity.PANELS.values() for name in names} < set(COLUMNS)
    assert (table[0]["step"], table[-1]["step"]) == (0, 20)
    assert all(math.isfinite(value) for row in table for value in row.values())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["lr"], config["weight_decay"], config["batch_size"]) == (0.1, 0.01, 32)
    assert set(config["results"]) == {"memorised_at", "grokked_at"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--k", "41"], "--k takes a whole number of at most --n 40, got 41"),
        (["--n", "8"], "--samples and --test_samples take at most 256 together"),
    ],
)
def test_bad_input_is_named_before_a_folder_is_made(arguments, complaint, tmp_path, capsys):
    code = code_of(main, [*arguments, "--out_dir", str(tmp_path / "runs")])
    error = capsys.readouterr().err.strip()
    assert code == 2 and complaint in error and "\n" not in error
    assert not (tmp_path / "runs").exists()
