"""Spectra on the torus against brute force, and the commands of spectral_shift.py."""

import itertools
import math
from pathlib import Path

import pytest
import torch
import yaml

import report
import spectral_shift
import sweep
from helpers import ROOT, code_of, run
from lab.bench.errors import UserError
from lab.bench.files import read_metrics
from lab.bench.seeds import generator
from lab.data.modular import modular_addition
from lab.fast.modular_tables import ModularTransformer
from lab.measures import spectra
from lab.networks.modular_mlp import ModularMLP

SCRIPT = "spectral_shift.py"
TINY = ("--p", "11", "--width", "16", "--num_logs", "20", "--device", "cpu")


def random_grid(p=7, classes=3, use="grid"):
    return torch.randn(p, p, classes, dtype=torch.float64, generator=generator(0, use))


def relabel(grid, c):
    """The same function after both residues were renamed, a → ca and b → cb."""
    to = c * torch.arange(len(grid)) % len(grid)
    renamed = torch.empty_like(grid)
    renamed[to[:, None], to] = grid
    return renamed


# spectra


def test_spectrum_is_that_of_the_definition():
    p, grid = 5, random_grid(5)
    energies = spectra.spectrum(grid)
    for k, m in ((0, 0), (1, 3), (4, 2)):
        turns = (k * torch.arange(p)[:, None] + m * torch.arange(p)).double() / p
        angles = 2 * math.pi * turns
        wave = torch.polar(torch.ones(p, p, dtype=torch.float64), -angles)
        by_hand = (grid * wave[:, :, None]).sum((0, 1)).abs().square().sum() / p**2
        assert torch.isclose(energies[k, m], by_hand, rtol=1e-10)
    assert torch.isclose(energies.sum(), grid.square().sum())


def test_eigenvalues_are_those_of_the_graph():
    p = 5
    adjacency = torch.zeros(p * p, p * p, dtype=torch.float64)
    for a in range(p):
        for b in range(p):
            for da, db in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                adjacency[a * p + b, (a + da) % p * p + (b + db) % p] = 1
    of_graph = torch.linalg.eigvalsh(torch.eye(p * p) - adjacency / 4)
    torch.testing.assert_close(spectra.eigenvalues(p).flatten().sort().values, of_graph)


def test_laplacian_energy_from_rolls_is_that_of_the_spectrum():
    grid = random_grid()
    less_components = grid - grid.mean(2, keepdim=True)
    by_modes = (spectra.eigenvalues(7) * spectra.spectrum(less_components)).sum() / grid.numel()
    torch.testing.assert_close(spectra.laplacian_energy(grid), by_modes)


@pytest.mark.parametrize("permuted", [False, True])
def test_laplacian_energy_has_its_gradient(permuted):
    places = torch.randperm(25, generator=generator(0, "places")) if permuted else None
    grid = random_grid(5).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: spectra.laplacian_energy(g, places), grid)


def test_permuted_torus_sums_over_its_own_edges():
    p, grid = 3, random_grid(3)
    places = torch.randperm(p * p, generator=generator(1, "places"))
    values = (grid - grid.mean(2, keepdim=True)).flatten(0, 1)
    total = 0.0
    for a in range(p):
        for b in range(p):
            value = values[places[a * p + b]]
            for neighbour in ((a + 1) % p * p + b, a * p + (b + 1) % p):
                total += (value - values[places[neighbour]]).square().sum() / 4
    torch.testing.assert_close(spectra.laplacian_energy(grid, places), total / grid.numel())
    assert not torch.isclose(spectra.laplacian_energy(grid), total / grid.numel())


def test_complete_graph_energy_sums_over_all_edges():
    p, grid = 3, random_grid(3)
    values = (grid - grid.mean(2, keepdim=True)).flatten(0, 1)
    n = p * p
    graph = torch.eye(n) - (1 - torch.eye(n)) / (n - 1)  # its normalised Laplacian
    by_matrix = (values * (graph.double() @ values)).mean()
    torch.testing.assert_close(spectra.complete_graph_energy(grid), by_matrix)


def test_penalty_is_the_energy_on_the_graph_asked_for():
    grid, places = random_grid(3), torch.randperm(9, generator=generator(1, "places"))
    squares = spectra.centred(grid).square().mean()
    for graph, energy in (
        ("torus", spectra.laplacian_energy(grid)),
        (places, spectra.laplacian_energy(grid, places)),
        ("complete", spectra.complete_graph_energy(grid)),
    ):
        assert torch.equal(spectra.penalty(grid, graph, "mean"), energy)
        if not isinstance(graph, str) or graph == "torus":
            assert torch.equal(spectra.penalty(grid, graph, "quotient"), energy / squares)


def test_measures_of_one_mode_and_of_equal_shares():
    p = 7
    angles = 2 * math.pi / p * (torch.arange(p)[:, None] + torch.arange(p)).double()
    wave = torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], dim=2)
    share = spectra.shares(spectra.spectrum(wave))  # ½ on (1, 1) and ½ on (−1, −1)
    assert spectra.diagonal_fraction(share) == pytest.approx(1)
    assert spectra.inverse_participation(share) == pytest.approx(0.5)
    assert spectra.top_share(share, 1) == pytest.approx(0.5)
    assert spectra.spectral_entropy(share) == pytest.approx(math.log(2) / math.log(p * p))
    equal = spectra.shares(torch.ones(p, p, dtype=torch.float64))
    assert spectra.spectral_entropy(equal) == pytest.approx(1)
    assert spectra.inverse_participation(equal) == pytest.approx(1 / p**2)
    assert spectra.top_share(equal, 10) == pytest.approx(10 / p**2)
    assert spectra.diagonal_fraction(equal) == pytest.approx(1 / p)
    assert not spectra.shares(torch.zeros(p, p)).any()


def test_diagonal_fraction_is_the_part_that_is_a_function_of_the_sum():
    p, grid = 7, spectra.centred(random_grid())
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    by_sum = torch.stack([grid.flatten(0, 1)[pairs.sum(1) % p == s].mean(0) for s in range(p)])
    share = spectra.shares(spectra.spectrum(grid))
    expected = p * by_sum.square().sum() / grid.square().sum()
    torch.testing.assert_close(spectra.diagonal_fraction(share), expected)


def test_relabelling_leaves_the_invariant_measures_and_moves_the_low_fraction():
    p = 11
    low = spectra.low_band(p, "fraction", 0.1, False)
    grid = random_grid(p) + 5 * low_wave(p)
    share = spectra.shares(spectra.spectrum(grid))
    for c in (2, 3, 10):
        other = spectra.shares(spectra.spectrum(relabel(grid, c)))
        for measure in (
            spectra.spectral_entropy,
            spectra.inverse_participation,
            spectra.top_share,
            spectra.diagonal_fraction,
        ):
            torch.testing.assert_close(measure(other), measure(share))
        in_other = (low * other).sum()
        # The column of the script, which moves the band instead of the logits:
        moved = spectra.relabelled(low, torch.tensor([c]))[0]
        torch.testing.assert_close((moved * share).sum(), in_other)
        if c == 10:  # a → −a
            torch.testing.assert_close(in_other, (low * share).sum())
        else:
            assert (in_other - (low * share).sum()).abs() > 0.2


def test_low_fractions_of_single_components():
    p, low = 7, spectra.low_band(7, "count", 4, False)  # (±1, 0) and (0, ±1)
    turns = 2 * math.pi / p * torch.arange(p).double()[:, None].expand(p, p)
    zero = torch.zeros(p, p)
    parts = [turns.cos(), (2 * turns.T).sin(), 2 * turns.sin() + turns.T.cos() * turns.cos(), zero]
    # The product has its energy at (±1, ±1): ¼ against the 2 of the sine.
    expected = torch.tensor([1, 0, 2 / 2.25, 0], dtype=torch.float64)
    torch.testing.assert_close(spectra.low_fractions(torch.stack(parts, 2), low), expected)
    grid = random_grid()
    share = spectra.shares(spectra.spectrum(grid))
    weights = grid.square().sum((0, 1)) / grid.square().sum()
    whole = (spectra.low_fractions(grid, low) * weights).sum()
    torch.testing.assert_close(whole, (low * share).sum())


def low_wave(p):
    """A function of the lowest frequency in a, as three components."""
    wave = torch.cos(2 * math.pi * torch.arange(p).double() / p)
    return torch.stack([wave, -wave, 0 * wave], dim=1)[:, None].expand(p, p, 3)


def test_centred_takes_both_means_away():
    grid = spectra.centred(random_grid() + 3)
    assert grid.mean(2).abs().max() < 1e-12
    assert grid.mean((0, 1)).abs().max() < 1e-12
    assert spectra.spectrum(grid)[0, 0] < 1e-20


def test_low_bands():
    p = 7
    levels = spectra.eigenvalues(p)
    assert spectra.low_band(p, "count", 4, False).sum() == 4  # (±1, 0) and (0, ±1)
    assert spectra.low_band(p, "count", 4, True).sum() == 5
    assert spectra.low_band(p, "count", 5, False).sum() == 8  # (±1, ±1) come together
    assert spectra.low_band(p, "fraction", 1.0, False).sum() == p * p - 1
    cutoff = spectra.low_band(p, "cutoff", 0.6, False)
    assert torch.equal(cutoff, (levels <= 0.6) & (levels > 1e-12))
    for band, value in (("count", 6), ("fraction", 0.3)):
        low = spectra.low_band(p, band, value, False)
        assert torch.equal(low, low.T)  # ties are not cut in two
        assert torch.equal(low, low.flip(0, 1).roll((1, 1), (0, 1)))


@pytest.mark.parametrize(
    ("p", "band", "value", "what"),
    [
        (3, "fraction", 0.1, "--p 3 is too small"),
        (5, "cutoff", 0.1, "--p 5 is too small"),
        (5, "count", 25, "24 modes"),
        (5, "count", 1.5, "whole number"),
        (5, "fraction", 1.5, "share"),
        (5, "cutoff", 2.5, "eigenvalue"),
    ],
)
def test_bands_that_cannot_be(p, band, value, what):
    with pytest.raises(UserError, match=what):
        spectra.low_band(p, band, value, False)


# networks


def mlp(alpha=0.5):
    return ModularMLP(5, 6, alpha, generator(0, "network"))


def test_mlp_is_that_of_one_hot_vectors():
    network, pairs = mlp(), modular_addition(5, 0.5, 0).pairs
    one_hot = torch.nn.functional.one_hot(pairs, 5).flatten(1).double()
    hidden = (6**-0.5 * (one_hot @ network.rows + network.first_bias)).relu()
    logits = hidden @ network.second.T + network.second_bias
    torch.testing.assert_close(network(pairs), logits)


@pytest.mark.parametrize(
    "network",
    [mlp(), ModularTransformer(5, 8, 2, 6, generator(0, "network")).double()],
    ids=["mlp", "transformer"],
)
def test_grid_holds_the_logits_of_all_pairs(network):
    pairs = modular_addition(5, 0.5, 0).pairs
    torch.testing.assert_close(network.grid().flatten(0, 1), network(pairs))
    assert not torch.allclose(network.grid()[1, 2], network.grid()[2, 3])


# commands


def test_command(tmp_path):
    ended = run(SCRIPT, *TINY, "--steps", 30, "--laplacian_penalty", 0.5, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / ended.stdout.splitlines()[-1]
    assert (folder / "figure.png").stat().st_size > 10_000
    metrics = read_metrics(folder)
    assert metrics["step"][-1] == 30
    assert {
        "loss",
        "penalty",
        "train_accuracy",
        "test_accuracy",
        "low_fraction",
        "laplacian_energy",
        "spectral_entropy",
        "inverse_participation",
        "top10_share",
        "diagonal_fraction",
        "parameter_norm",
        "sparsity",
        "pruned_flops",
        "pruned_test_accuracy",
    } <= metrics.keys()
    assert (metrics["low_fraction_least"] <= metrics["low_fraction_relabelled"]).all()
    assert (metrics["low_fraction_relabelled"] <= metrics["low_fraction_most"]).all()
    found = yaml.safe_load((folder / "config.yaml").read_text())["results"]
    assert found == {"memorised_at": None, "grokked_at": None}
    state = torch.load(folder / "checkpoint.pt")["state"]
    kept = sorted({*map(int, metrics["step"][::4]), 30})
    tables = {f"per_dim_step{step}" for step in kept}
    assert state["snapshots"].keys() == {*map(str, kept), *tables}
    assert {path.stem for path in (folder / "spectral").iterdir()} == tables
    squares = sum(w.square().sum() for w in state["network"].values())
    assert metrics["parameter_norm"][-1] == pytest.approx(float(squares.sqrt()), rel=1e-6)


def table(path):
    head, *rows = path.read_text().splitlines()
    assert head == "dimension,low_fraction"
    return {int(c): float(value) for c, value in (row.split(",") for row in rows)}


def test_tables_hold_so_many_classes_as_asked_for_and_the_same_at_every_moment(capsys):
    sizes = {}
    for samples in ("64", "3", "0"):  # of the finished run the tables alone are made again
        arguments = [*TINY, "--steps", "9", "--projection_samples", samples]
        assert spectral_shift.main(arguments) == 0
        folder = Path(capsys.readouterr().out.strip()) / "spectral"
        sizes[samples] = {path.stem: table(path) for path in folder.iterdir()}
    of_all, three, none = sizes.values()
    assert none == {} and of_all.keys() == three.keys() and "per_dim_step9" in three
    assert all(list(values) == list(range(11)) for values in of_all.values())
    assert len({tuple(values) for values in three.values()}) == 1
    for name, values in three.items():
        assert len(values) == 3 and values.items() <= of_all[name].items()
    snapshots = torch.load(folder.parent / "checkpoint.pt")["state"]["snapshots"]
    assert list(of_all["per_dim_step9"].values()) == snapshots["per_dim_step9"]["kept"].tolist()


@pytest.mark.parametrize("decay", ["decoupled", "l2"])
def test_the_first_update_under_both_kinds_of_decay(decay):
    words = [*TINY, "--steps", "1", "--dtype", "float64", "--lr", "0.01", "--weight_decay", "0.5"]
    assert spectral_shift.main([*words, "--decay", decay, "--name", "r"]) == 0
    trained = torch.load("runs/spectral_shift/r/checkpoint.pt")["state"]["network"]
    network, task = ModularMLP(11, 16, 0.0, generator(0, "network")), modular_addition(11, 0.5, 0)
    outputs, y = network(task.pairs[task.train]), task.labels[task.train]
    torch.nn.functional.cross_entropy(outputs, y).backward()
    for name, weight in network.named_parameters():
        l2, kept = (0.5 * weight, 1.0) if decay == "l2" else (0.0, 1 - 0.01 * 0.5)
        gradient = weight.grad + l2  # Adam's first update is lr · g / (|g| + ε)
        expected = kept * weight - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(trained[name], expected.detach())


def test_ablation_compares_the_runs_that_are_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = (*TINY, "--steps", "5")
    assert spectral_shift.main([*options]) == 0
    (alone,) = (tmp_path / "runs/spectral_shift").iterdir()
    before = (alone / "checkpoint.pt").stat().st_mtime_ns
    grid = str(ROOT / "configs/spectral_ablation.yaml")
    assert sweep.main([grid, *options, "--seed", "0"]) == 0
    assert (alone / "checkpoint.pt").stat().st_mtime_ns == before
    runs = [Path(line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert len({read_metrics(run)["loss"][-1] for run in runs}) == 4  # each is another network
    named = spectral_shift.Options().identity()
    words = [f"{k[2:]}={v}" for k, v in itertools.pairwise(options) if k[2:] in named]
    assert report.main(["penalty_ablation", *words]) == 0
    printed = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip() for line in printed[2:-1]]
    assert names == ["no penalty", "true torus, 0.1", "complete graph, 0.1", "permuted torus, 0.1"]
    assert Path(printed[-1]).read_bytes().startswith(b"\x89PNG")
    assert report.main(["penalty_ablation", *words, "laplacian_penalty=1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4  # no penalty alone is left
    for no_such in ("seed=7", "p=89"):
        assert report.main(["penalty_ablation", *words, no_such]) == 2
    assert "no finished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--p", "3"), "--p 3 is too small for --band fraction"),
        (("--p", "12"), "--p takes a prime number, got 12"),
        (("--p", "5", "--band", "count"), "--band_value with --band count takes a whole number"),
        (
            ("--complete_graph", "--laplacian_penalty", "1", "--penalty_form", "quotient"),
            "--penalty_form quotient is constant",
        ),
        (
            ("--permuted_torus", "--complete_graph", "--laplacian_penalty", "1"),
            "leave out --permuted_torus",
        ),
        (("--decay", "l2", "--weight_decay", "0"), "--decay l2 takes a --weight_decay above 0"),
    ],
)
def test_bad_input_is_one_line_and_makes_no_folder(tmp_path, monkeypatch, capsys, options, what):
    monkeypatch.chdir(tmp_path)
    assert code_of(spectral_shift.main, options) == 2
    err = capsys.readouterr().err
    assert what in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
