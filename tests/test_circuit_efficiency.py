"""Circuit efficiency: cells, crossing and command; what is left of a network that is pruned."""

import numpy
import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

import circuit_efficiency
from circuit_efficiency import Options, cells
from helpers import run
from lab.bench.files import read_rows
from lab.bench.seeds import generator
from lab.fast.modular_tables import ModularTransformer
from lab.measures.critical_size import crossing
from lab.measures.pruning import flops, pruned_circuit, zeroed
from lab.networks.modular_mlp import ModularMLP
from lab.networks.transformer import OneLayerTransformer

TINY = ("--p", 5, "--width", 24, "--least_pairs", 6, "--most_pairs", 20, "--sizes", 3,
        "--seeds", 2, "--tolerance", 0.01)  # fmt: skip


def test_crossing_is_interpolated_and_the_last_one_counts():
    pairs = numpy.array([100.0, 120.0, 160.0, 200.0])
    assert crossing(pairs, numpy.array([-3.0, -1.0, 3.0, 9.0])) == pytest.approx(130)
    assert crossing(pairs, numpy.array([-3.0, 1.0, -1.0, 1.0])) == pytest.approx(180)
    assert numpy.isnan(crossing(pairs, numpy.array([-3.0, -2.0, -1.0, -0.5])))
    assert numpy.isnan(crossing(pairs, numpy.array([1.0, 2.0, 3.0, 4.0])))


class Table(torch.nn.Module):
    """Logits 0 and i + 1 of the point i: right as long as the entry is there."""

    def __init__(self, points):
        super().__init__()
        entries = torch.stack([torch.zeros(points), torch.arange(1.0, points + 1)], dim=1)
        self.rows = torch.nn.Parameter(entries)

    def forward(self, x):
        return self.rows[x]


def test_pruning_stops_where_one_in_a_hundred_is_lost():
    points, ones = torch.arange(200), torch.ones(200, dtype=torch.long)
    found = pruned_circuit(Table(200), (points, ones), (points[:4], ones[:4]))
    assert found["sparsity"] == pytest.approx(202 / 400)  # the zeros and the entries 1 and 2
    assert found["pruned_flops"] == pytest.approx(198 * 2 / 200)  # of 200 rows a pair reads two
    assert found["pruned_test_accuracy"] == 0.5
    # Where nothing is right, nothing is lost.
    nothing = pruned_circuit(Table(200), (points, 7 * ones), (points, ones))
    assert (nothing["sparsity"], nothing["pruned_flops"]) == (1, 0)


def test_the_smallest_weights_of_all_layers_go_and_the_network_stays_as_it_was():
    network = ModularMLP(5, 6, 0.0, generator(0, "network"))
    weights = {name: w.detach().clone() for name, w in network.named_parameters()}
    left = zeroed(weights, 0.4)
    gone = torch.cat([w[left[name] == 0].abs() for name, w in weights.items()])
    kept = torch.cat([w[left[name] != 0].abs() for name, w in weights.items()])
    assert len(gone) == round(0.4 * 101) and gone.max() < kept.min()
    assert all(torch.equal(zeroed(weights, 0.0)[name], w) for name, w in weights.items())
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    pruned_circuit(network, (pairs, pairs.sum(1) % 5), (pairs, pairs.sum(1) % 5))
    assert all(torch.equal(w, weights[name]) for name, w in network.named_parameters())


def test_flops_of_the_mlp_by_hand():
    weights = dict(ModularMLP(5, 6, 0.0, generator(0, "network")).named_parameters())
    # Two rows of six, a bias of six, a matrix of 5 × 6, a bias of five.
    assert flops(weights) == pytest.approx(2 * 6 + 6 + 2 * 30 + 5)
    with torch.no_grad():
        weights["second"][:2] = 0
        weights["rows"][0] = 0
    assert flops(weights) == pytest.approx(2 * 6 * 9 / 10 + 6 + 2 * 18 + 5)


def test_flops_of_the_transformer_are_those_of_its_matrix_products():
    network = ModularTransformer(7, 8, 2, 12, generator(0, "network"))
    weights = {name: torch.ones_like(w) for name, w in network.named_parameters()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        OneLayerTransformer.forward(network, torch.tensor([[1, 2, 7]]))
    attention = 2 * 3 * 8 + 2 * 3 * 8  # scores and their sums, which have no weights
    added = 3 * 8 + 3 * 8 + 12 + 8  # embeddings, positions, biases
    assert flops(weights) == pytest.approx(counter.get_total_flops() - attention + added)


def test_cells_cover_the_grid_once():
    grid = cells(Options(least_pairs=10, most_pairs=30, sizes=3, seeds=2, seed=4))
    assert len(grid) == len(set(grid)) == 12
    assert {n for n, _, _ in grid} == {10, 20, 30} and {s for _, s, _ in grid} == {4, 5}


def test_the_command_users_type(tmp_path):
    done = run("circuit_efficiency.py", *TINY, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / done.stdout.splitlines()[-1]
    assert (folder / "figure.png").stat().st_size > 10_000
    table = read_rows(folder)
    assert [row["step"] for row in table] == list(range(1, 13))
    assert all(row["train_error"] < 1e-12 for row in table)
    assert all(row["fall"] <= 0.01 or row["time"] >= 60 for row in table)
    # The order in which `tables` reads them.
    assert [row["pairs"] for row in table[:6:2]] == [6, 13, 20]
    assert [row["random_labels"] for row in table[:4]] == [0, 1, 0, 1]
    found = yaml.safe_load((folder / "config.yaml").read_text())["results"]
    assert len(found["critical_pairs"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--p", 21), "--p takes a prime number, got 21"),
        (("--most_pairs", 100), "--most_pairs takes more than --least_pairs"),
        (("--most_pairs", 529, "--width", 600), "--most_pairs takes less than all 529 pairs"),
        (("--width", 300), "--width takes at least the number of training pairs, 320"),
        (("--sizes", 300), "--sizes takes at most the 211 sizes"),
        (("--steps", 5), "--steps follows from --sizes and --seeds"),
        (("--p", 3, "--least_pairs", 1, "--most_pairs", 4, "--sizes", 2, "--width", 4,
          "--ridge", 0, "--seed", 3), "--ridge takes a number large enough"),
    ],
)  # fmt: skip
def test_bad_input(arguments, message, tmp_path, capsys):
    assert circuit_efficiency.main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
