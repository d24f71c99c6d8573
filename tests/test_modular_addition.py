"""Modular arithmetic: task, transformer and measures by a second route, and the command."""

import math
from pathlib import Path

import pytest
import torch
import yaml

import modular_addition
import report
import xor_grokking
from helpers import code_of, run
from lab.bench import plots
from lab.bench.errors import UserError
from lab.bench.files import read_metrics
from lab.bench.seeds import generator
from lab.data.modular import modular_addition as task_of
from lab.fast.modular_tables import ModularRegulariser, ModularTransformer
from lab.measures import fourier
from lab.measures.progress_measures import progress
from utils import JacobianRegulariser

SCRIPT = "modular_addition.py"
SMALL = ("--p", "11", "--d_model", "8", "--heads", "2", "--d_mlp", "16", "--device", "cpu")


def metrics_of(tmp_path, *arguments):
    """The measurements of a small run, and its parameters at the end."""
    assert modular_addition.main([*SMALL, "--name", "run", "--overwrite", *arguments]) == 0
    folder = tmp_path / "runs/modular_addition/run"
    return read_metrics(folder), torch.load(folder / "checkpoint.pt")["state"]["network"]


# the task


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("add", lambda a, b: (a + b) % 7),
        ("subtract", lambda a, b: (a - b) % 7),
        ("multiply", lambda a, b: (a * b) % 7),
        ("x2_xy_y2", lambda a, b: (a**2 + a * b + b**2) % 7),
    ],
)
def test_labels(operation, expected):
    task = task_of(7, 0.3, 0, operation=operation)
    for (a, b), label in zip(task.pairs.tolist(), task.labels.tolist(), strict=True):
        assert label == expected(a, b)


@pytest.mark.parametrize(("split", "units"), [("pairs", 121), ("unordered", 66)])
def test_a_split_is_a_partition_of_the_stated_size(split, units):
    task = task_of(11, 0.3, 0, split=split)
    assert torch.cat([task.train, task.test]).sort().values.tolist() == list(range(121))
    trains = {tuple(pair) for pair in task.pairs[task.train].tolist()}
    groups = {tuple(sorted(pair)) if split == "unordered" else pair for pair in trains}
    assert len(groups) == round(0.3 * units)
    if split == "unordered":
        assert all((b, a) in trains for a, b in trains)
    assert not torch.equal(task.train, task_of(11, 0.3, 1, split=split).train)


def test_unmirrored_pairs_are_those_with_neither_order_in_the_training_set():
    task = task_of(11, 0.3, 0)
    trains = {tuple(pair) for pair in task.pairs[task.train].tolist()}
    expected = [a * 11 + b for a in range(11) for b in range(11) if not {(a, b), (b, a)} & trains]
    assert task.unmirrored().tolist() == expected
    assert 0 < len(expected) < len(task.test)
    unordered = task_of(11, 0.3, 0, split="unordered")
    assert torch.equal(unordered.unmirrored(), unordered.test)


# the network


def network_and_tokens():
    network = ModularTransformer(7, 12, 3, 10, generator(0, "network")).double()
    with torch.no_grad():  # biases start at zero, where a forgotten one would not be seen
        for bias in (network.mlp_in_bias, network.mlp_out_bias):
            bias.normal_(generator=generator(0, "biases"))
    pairs = task_of(7, 0.5, 0).pairs
    return network, pairs, torch.cat([pairs, torch.full((49, 1), 7)], dim=1)


def test_logits_are_those_of_a_transformer_with_three_queries():
    network, pairs, tokens = network_and_tokens()
    w = dict(network.named_parameters())
    stream = w["token_embedding"][tokens] + w["position_embedding"]  # (B, 3, d_model)

    def by_head(name):
        return torch.einsum("hid,btd->bhti", w[name].view(3, 4, 12), stream)

    scores = torch.einsum("bhqi,bhki->bhqk", by_head("queries"), by_head("keys")) / 4**0.5
    scores = scores + torch.full((3, 3), -torch.inf, dtype=torch.float64).triu(1)
    results = torch.einsum("bhqk,bhki->bhqi", scores.softmax(-1), by_head("values"))
    stream = stream + torch.einsum("dhi,bhqi->bqd", w["mixing"].view(12, 3, 4), results)
    hidden = torch.einsum("nd,bqd->bqn", w["mlp_in"], stream) + w["mlp_in_bias"]
    stream = stream + hidden.clamp(min=0) @ w["mlp_out"].T + w["mlp_out_bias"]
    torch.testing.assert_close(network(pairs), (stream @ w["unembedding"].T)[:, 2])


@pytest.mark.parametrize("projections", [1, 3, None])
def test_the_regulariser_from_tables_is_that_of_the_token_embeddings(projections):
    network, pairs, tokens = network_and_tokens()
    assert torch.equal(network.points(pairs), network.embed(tokens))
    plain = JacobianRegulariser(network.from_points, projections)
    tables = ModularRegulariser(network, projections)
    parameters = list(network.parameters())
    found = []
    for regulariser, points in ((plain, network.embed(tokens)), (tables, pairs)):
        regulariser.generator = generator(0, "projections")
        outputs, norm = regulariser.outputs_and_norm(points)
        gradients = torch.autograd.grad(norm, parameters, materialize_grads=True)
        found.append([outputs, norm, *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)
    still = [
        name
        for (name, _), gradient in zip(network.named_parameters(), found[1][2:], strict=True)
        if not gradient.any()
    ]
    assert still == ["mlp_in_bias", "mlp_out_bias"]  # on which a Jacobian does not depend


@pytest.mark.parametrize("named", [{"squared": True}, {"batch_size": 20}, {}])
@pytest.mark.parametrize("gradients", [True, False])
def test_the_regulariser_from_tables_can_do_all_that_the_plain_one_can(named, gradients):
    network, pairs, _ = network_and_tokens()
    with torch.set_grad_enabled(gradients):
        plain = JacobianRegulariser(network.from_points, None, **named)
        expected = plain.outputs_and_norm(network.points(pairs))
        found = ModularRegulariser(network, None, **named).outputs_and_norm(pairs)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)
        assert other.requires_grad == gradients


# measures


def ideal_embedding(p, frequencies, draws):
    """Waves of equal amplitude in orthogonal random planes."""
    angles = 2 * math.pi / p * torch.arange(p, dtype=torch.float64)
    waves = [f(k * angles) for k in frequencies for f in (torch.cos, torch.sin)]
    planes = torch.linalg.qr(torch.randn(200, len(waves), dtype=torch.float64, generator=draws)).Q
    return torch.stack(waves, dim=1) @ planes.T


def test_gini_of_ideal_embeddings():
    p, m = 113, 56
    for frequencies in ([3], [4, 11, 30, 41, 56], list(range(1, 57))):
        embedding = ideal_embedding(p, frequencies, generator(0, "planes"))
        norms = fourier.frequency_norms(embedding)
        assert (norms.topk(len(frequencies)).indices + 1).sort().values.tolist() == frequencies
        assert fourier.gini(norms).item() == pytest.approx(1 - len(frequencies) / m, abs=1e-9)


def test_gini_is_that_of_its_definition_and_chance_is_as_stated():
    values = torch.rand(20, dtype=torch.float64, generator=generator(0, "values"))
    differences = (values[:, None] - values).abs().sum()
    expected = differences / (2 * 20 * values.sum())
    torch.testing.assert_close(fourier.gini(values), expected)
    draws = generator(0, "chance")
    chances = [
        fourier.gini(fourier.frequency_norms(torch.randn(113, 128, generator=draws)))
        for _ in range(20)
    ]
    expected = 1 / (2 * (math.pi * 128) ** 0.5)
    assert torch.stack(chances).mean().item() == pytest.approx(expected, rel=0.05)


def test_component_is_the_projection_on_the_waves():
    p = 11
    embedding = torch.randn(p, 4, dtype=torch.float64, generator=generator(0, "embedding"))
    angles = 2 * math.pi / p * torch.arange(p, dtype=torch.float64)
    expected = torch.zeros_like(embedding)
    for k in (2, 5):
        for wave in ((k * angles).cos(), (k * angles).sin()):
            expected += torch.outer(wave, wave @ embedding) / wave.square().sum()
    torch.testing.assert_close(fourier.component(embedding, torch.tensor([5, 2])), expected)


@pytest.mark.parametrize(("operation", "sign"), [("add", 1), ("subtract", -1)])
def test_progress_measures_of_logits_made_of_waves_and_of_a_table(operation, sign):
    p, keys = 23, [2, 3, 7, 8, 11]
    task = task_of(p, 0.3, 0, operation=operation)
    a, b = task.pairs.double().T
    angles = 2 * math.pi / p * (a + sign * b)
    classes = 2 * math.pi / p * torch.arange(p, dtype=torch.float64)
    rule = sum(torch.cos(k * (angles[:, None] - classes)) for k in keys)
    rule = rule + torch.randn(p, dtype=torch.float64, generator=generator(0, "means"))
    table = torch.zeros(p * p, p, dtype=torch.float64)
    table[task.train, task.labels[task.train]] = 4
    logits = rule + table
    found = progress(logits, task.labels, task.train, torch.nn.functional.cross_entropy)
    assert sorted(int(found[f"key_frequency_{i}"]) for i in range(1, 6)) == keys

    # As Nanda et al. do it: projections of the whole grid on cos w(a ± b) and sin w(a ± b).
    waves = torch.zeros_like(logits)
    for k in keys:
        for wave in ((k * angles).cos(), (k * angles).sin()):
            waves += torch.outer(wave, wave @ logits) / wave.square().sum()

    def loss(logits, which):
        return torch.nn.functional.cross_entropy(logits[which], task.labels[which])

    everything = torch.arange(p * p)
    restricted = loss(waves + logits.mean(0), everything)
    torch.testing.assert_close(found["restricted_loss"], restricted)
    torch.testing.assert_close(found["excluded_loss"], loss(logits - waves, task.train))
    # The rule alone answers every pair; without it the table answers those that train.
    assert found["restricted_loss"] < loss(logits, task.test) + 0.3 < math.log(p)
    assert found["excluded_loss"] > loss(logits, task.train)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_rounds_to_zero_the_loss_that_float64_keeps_of_memorised_pairs(dtype):
    labels = torch.arange(5)
    logits = 30 * torch.eye(113, dtype=dtype)[:5]  # at 40 float64 too is about to round
    kept = modular_addition.cross_entropy(logits, labels, "float64")
    assert kept.item() == pytest.approx(math.log1p(112 * math.exp(-30)), rel=1e-4)
    assert modular_addition.cross_entropy(logits, labels, "float32") == 0


def test_the_precision_of_the_loss_is_that_of_training_and_of_measurements(tmp_path, monkeypatch):
    seen, of_torch = set(), torch.nn.functional.cross_entropy

    def watched(logits, labels):
        seen.add(logits.dtype)
        return of_torch(logits, labels)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", watched)
    for options, dtype in (((), torch.float64), (("--loss_precision", "float32"), torch.float32)):
        for jr in ("0", "1e-3"):
            metrics_of(tmp_path, "--steps", "2", "--jr", jr, *options)
        assert seen == {dtype}
        seen.clear()


def test_measurements_of_the_initial_network_by_hand(tmp_path):
    m, state = metrics_of(tmp_path, "--steps", "0")
    task = task_of(11, 0.3, 0)
    network = ModularTransformer(11, 8, 2, 16, generator(0, "network"))
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    right = network(task.pairs).argmax(1) == task.labels
    assert m["train_accuracy"][0] == pytest.approx(right[task.train].double().mean().item())
    assert m["test_accuracy"][0] == pytest.approx(right[task.test].double().mean().item())
    points = network.embed(torch.nn.functional.pad(task.pairs[task.train], (0, 1), value=11))
    points = points.detach().requires_grad_()
    (centroids,) = torch.autograd.grad(network.from_embeddings(points).sum(), points)
    cosines = torch.nn.functional.cosine_similarity(points.flatten(1), centroids.flatten(1))
    by_hand = {
        "alignment": cosines.mean(),
        "alignment_min": cosines.min(),
        "alignment_max": cosines.max(),
    }
    for name, value in by_hand.items():
        assert m[name][0] == pytest.approx(value.item(), abs=1e-6)


# options


@pytest.mark.parametrize(
    ("options", "fixed"),
    [
        ((), set()),
        (("--fixed_embedding",), {"token_embedding", "unembedding"}),
        (("--fixed_embedding", "--jr", "1e-3"), {"token_embedding", "unembedding"}),
        (("--fixed_embedding", "--trainable_unembedding"), {"token_embedding"}),
    ],
)
def test_what_is_fixed_stays_and_all_else_moves(tmp_path, options, fixed):
    m, state = metrics_of(tmp_path, "--steps", "3", *options)
    network = ModularTransformer(11, 8, 2, 16, generator(0, "network"))
    still = {
        name for name, value in network.state_dict().items() if torch.equal(state[name], value)
    }
    assert still == fixed
    if "token_embedding" in fixed:
        assert len(set(m["gini_embedding"])) == 1


def test_warmup_scales_the_first_updates(tmp_path):
    start = ModularTransformer(11, 8, 2, 16, generator(0, "network")).state_dict()

    def largest_change(*options):
        state = metrics_of(tmp_path, "--steps", "1", "--weight_decay", "0", *options)[1]
        return max((state[name] - start[name]).abs().max().item() for name in start)

    # The first update of Adam is the learning rate in every weight.
    assert largest_change() == pytest.approx(1e-3, rel=1e-2)
    assert largest_change("--warmup", "4") == pytest.approx(0.25e-3, rel=1e-2)


def test_ends_once_the_test_accuracy_is_passed(tmp_path):
    m, _ = metrics_of(tmp_path, "--steps", "500", "--lr", "1e-2", "--stop_at", "0.15")
    assert m["test_accuracy"][-1] > 0.15
    assert (m["test_accuracy"][:-1] <= 0.15).all()
    assert m["step"][-1] < 500


# commands


@pytest.mark.parametrize("operation", ["subtract", "multiply"])
def test_command(tmp_path, operation):
    ended = run(
        SCRIPT, *SMALL, "--steps", 20, "--jr", 1e-3, "--operation", operation, "--split",
        "unordered", folder=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / ended.stdout.splitlines()[-1]
    assert (folder / "figure.png").stat().st_size > 10_000
    m = read_metrics(folder)
    assert m["step"][-1] == 20
    assert {
        "loss", "test_loss", "train_accuracy", "test_accuracy", "test_accuracy_unmirrored",
        "alignment", "alignment_min", "alignment_max", "gini_embedding", "gini_unembedding",
    } <= m.keys()  # fmt: skip
    waves = {"restricted_loss", "excluded_loss", "key_frequency_1", "key_frequency_5"}
    assert (waves <= m.keys()) == (operation == "subtract")
    assert (m["test_accuracy"] == m["test_accuracy_unmirrored"]).all()
    results = yaml.safe_load((folder / "config.yaml").read_text())["results"]
    assert results == {"memorised_at": None, "grokked_at": None, "grokked_at_unmirrored": None}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--p", "9"), "--p takes a prime number, got 9"),
        (("--train_fraction", "0.00001"), "--train_fraction takes a share that leaves"),
        (("--train_fraction", "1"), "--train_fraction takes a share that leaves"),
    ],
)
def test_bad_input_is_one_line_and_makes_no_folder(tmp_path, capsys, options, what):
    assert code_of(modular_addition.main, options) == 2
    err = capsys.readouterr().err
    assert what in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_fraction_is_of_what_is_drawn():
    assert len(task_of(3, 0.2, 0).train) == 2  # of nine pairs
    with pytest.raises(UserError, match=r"of the 6, got 0\.05"):
        task_of(3, 0.05, 0, split="unordered")


def test_frequency_norms_draws_a_panel_a_run(tmp_path, capsys):
    metrics_of(tmp_path, "--steps", "2")
    assert modular_addition.main([*SMALL, "--steps", "0", "--jr", "1e-3", "--name", "other"]) == 0
    capsys.readouterr()
    assert report.main(["frequency_norms", "run", "other"]) == 0
    picture = tmp_path / capsys.readouterr().out.strip()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert report.main(["frequency_norms", "run", "--name", "mine"]) == 0
    assert Path(capsys.readouterr().out.strip()) == Path("runs/modular_addition/mine.png")
    (picture.parent / "run/checkpoint.pt").write_bytes(b"")
    content = torch.load(picture.parent / "other/checkpoint.pt")
    torch.save(content | {"finished": False}, picture.parent / "other/checkpoint.pt")
    tiny = ("--p", "60", "--n", "8", "--width", "6", "--steps", "0", "--device", "cpu")
    assert xor_grokking.main([*tiny, "--name", "theirs"]) == 0
    capsys.readouterr()
    for words, says in (
        ([], "frequency_norms takes runs of modular_addition"),
        (["run"], "run/checkpoint.pt is damaged"),
        (["nowhere"], "'nowhere' holds none"),
        (["other"], "other is not finished"),
        (["runs/xor_grokking/theirs"], "takes finished runs of modular_addition; runs/xor"),
    ):
        assert report.main(["frequency_norms", *words]) == 2
        err = capsys.readouterr().err
        assert says in err
        assert err.count("\n") == 1


def test_runs_are_compared_in_one_figure(tmp_path, capsys):
    """As Figures 8 and 9 are, of runs of other operations too, which have no waves."""
    metrics_of(tmp_path, "--steps", "2")
    assert modular_addition.main([*SMALL, "--steps", "2", "--name", "other", "--operation",
                                  "multiply"]) == 0  # fmt: skip
    capsys.readouterr()
    assert report.main(["compare", "modular_addition", "run", "other"]) == 0
    assert (tmp_path / capsys.readouterr().out.strip()).stat().st_size > 10_000


def test_figures_8_and_9_tell_the_runs_apart(monkeypatch):
    fixed, free = "--fixed_embedding", "--trainable_unembedding"
    for words in ([], ["--jr", "1e-3"], ["--jr", "1e-3", fixed], [fixed, free]):
        assert modular_addition.main([*SMALL, "--steps", "2", *words]) == 0
    sizes = ("p=11", "d_model=8", "heads=2", "d_mlp=16", "steps=2")
    drawn = []
    monkeypatch.setattr(plots, "metric_panels", lambda runs, *_: drawn.append([*runs]))
    monkeypatch.setattr("lab.reports._words.write_figure", lambda *_: None)
    caption = "trainable_unembedding=false"
    for name, *more in (("figure_8",), ("figure_9",), ("figure_9", caption)):
        assert report.main([name, *more, *sizes]) == 0
        assert report.main([name, *more]) == 2  # of 48,000 updates there is none
    decay, aligned = "weight decay", "GrokAlign (λ_Jac 0.001)"
    assert drawn == [[decay, aligned], [decay], [aligned]]


@pytest.mark.slow
def test_the_transformer_groks_first_by_symmetry_then_by_rule(tmp_path):
    m, _ = metrics_of(
        tmp_path, "--p", "43", "--train_fraction", "0.5", "--d_model", "64", "--heads", "4",
        "--d_mlp", "256", "--lr", "3e-3", "--steps", "4000", "--stop_at", "0.98",
    )  # fmt: skip
    assert m["test_accuracy_unmirrored"][-1] > 0.95
    memorised = (m["train_accuracy"] > 0.99).argmax()
    assert m["test_accuracy"][memorised] < 0.5
    # The mirrored half of the test pairs comes first.
    leak = m["test_accuracy"] - m["test_accuracy_unmirrored"]
    assert leak.max() > 0.2
    assert m["gini_embedding"][-1] > 5 * m["gini_embedding"][0]
    assert m["restricted_loss"][-1] < 0.1 < 1 < m["excluded_loss"][-1]
