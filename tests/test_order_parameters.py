"""Order parameters where their values are known, sweeps, and the script's commands."""

import math
import signal
import time
from pathlib import Path

import numpy
import pytest
import torch
import yaml

import order_parameters
from helpers import interrupt, run, start
from lab import fourier, orders, sweeps
from lab.modular import ModularMLP, modular_addition
from lab.options import parse
from lab.runs import read_metrics
from lab.seeds import generator

SCRIPT = "order_parameters.py"
TINY = ("--p", 11, "--width", 16, "--num_logs", 12, "--device", "cpu")


def gaussian(*shape, use="weights"):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(0, use))


def circles(p=23, frequencies=(2, 5), amplitudes=(1.0, 3.0), phases=24):
    """(p, d): columns of one frequency each, whose phases are spread evenly."""
    a = torch.arange(p, dtype=torch.float64)[:, None]
    phase = torch.arange(phases, dtype=torch.float64) * 2 * math.pi / phases
    waves = [
        m * torch.cos(2 * math.pi * k * a / p + phase)
        for k, m in zip(frequencies, amplitudes, strict=True)
    ]
    return torch.cat(waves, dim=1)


def network(p=5, width=7, alpha=0.3):
    return ModularMLP(p, width, alpha, generator(0, "network")).requires_grad_(False)


# representation quality


def test_parallelograms_by_brute_force():
    p, tolerance = 5, 2.5
    of_a, of_b = gaussian(p, 3, use="a"), gaussian(p, 3, use="b")
    near = cases = 0
    for a in range(p):
        for b in range(p):
            for c in range(p):
                d = (a + b - c) % p
                if c != a:
                    cases += 1
                    near += bool((of_a[a] + of_b[b] - of_a[c] - of_b[d]).norm() <= tolerance)
    assert 0 < near < cases
    assert orders.parallelogram_quality(of_a, of_b, tolerance) == pytest.approx(near / cases)


def test_parallelograms_of_a_line_and_of_circles():
    p = 23
    line = torch.arange(p, dtype=torch.float64)[:, None]
    # Pairs with one sum modulo p are together unless one sum is past p and the other is not.
    share = (2 * p - 1) / (3 * p)
    assert orders.parallelogram_quality(line, line) == pytest.approx(share)
    e = (
        circles()
    )  # of a network that has learnt the rule, and yet nothing but e_a + e_b = e_b + e_a:
    assert orders.parallelogram_quality(e, e) == pytest.approx(1 / p)
    assert orders.parallelogram_quality(e, e.roll(1, 0)) == pytest.approx(1 / p)
    assert orders.parallelogram_quality(e, -e) == 0
    assert orders.parallelogram_quality(1e-3 * e, -1e-3 * e) == 1  # no scale


def test_distances_on_circles_depend_on_the_difference_alone():
    e = circles()
    assert orders.distance_quality(e) == pytest.approx(1)
    noisy = e + 0.5 * gaussian(*e.shape)
    value = orders.distance_quality(noisy)
    assert 0.1 < value < 0.99
    assert orders.distance_quality(7 * noisy) == pytest.approx(float(value))
    relabelled = noisy[4 * torch.arange(23) % 23]  # a → 4a only renames the differences
    assert orders.distance_quality(relabelled) == pytest.approx(float(value))
    assert orders.distance_quality(noisy[torch.randperm(23, generator=generator(0))]) < value / 2
    assert orders.distance_quality(torch.zeros(5, 2)) == 0


def test_chance_of_the_distances():
    p = 29
    many = [orders.distance_quality(gaussian(p, 2000, use=use)) for use in range(30)]
    assert float(torch.stack(many).mean()) == pytest.approx(1 / (2 * p), rel=0.1)


# ranks


def test_ranks_of_known_spectra():
    assert orders.effective_rank(torch.tensor([3.0, 3.0, 3.0, 0.0])) == pytest.approx(3)
    assert orders.effective_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(8**0.5)
    assert orders.participation_ratio(torch.diag(torch.tensor([2.0, 2, 2, 0]))) == 3
    turn = torch.linalg.qr(gaussian(3, 3)).Q
    gram = turn @ torch.diag(torch.tensor([1.0, 2, 3]).double()) @ turn.T
    assert orders.participation_ratio(gram) == pytest.approx(36 / 14)


def test_chance_of_the_ranks():
    sigma = torch.linalg.svdvals(gaussian(194, 512))
    assert orders.effective_rank(sigma) == pytest.approx(184, abs=1)
    assert orders.effective_rank(sigma.square()) == pytest.approx(160, abs=1)
    covariance = orders.centred_alignments(
        network(97, 512, 0.0), torch.arange(97**2) % 97
    ).covariance
    assert orders.participation_ratio(covariance) == pytest.approx(144, abs=1)


# kernels


def gradients(net, pairs):
    """(n, classes, parameters): Jacobians by all parameters, by torch.func."""
    one_hot = torch.nn.functional.one_hot(pairs, len(net.second)).flatten(1).double()

    def logits(parameters, x):
        first = net.scale * (x @ parameters["rows"] + parameters["first_bias"])
        return first.relu() @ parameters["second"].T + parameters["second_bias"]

    parameters = dict(net.named_parameters())
    torch.testing.assert_close(logits(parameters, one_hot), net(pairs))
    each = torch.func.vmap(torch.func.jacrev(logits), (None, 0))(parameters, one_hot)
    return torch.cat([part.flatten(2) for part in each.values()], dim=2)


def centred_alignment(kernel, labels):
    n = len(labels)
    centring = torch.eye(n, dtype=torch.float64) - 1 / n
    k, t = (centring @ each @ centring for each in (kernel, orders.label_kernel(labels)))
    return float((k * t).sum() / (k.norm() * t.norm()))


@pytest.mark.parametrize("random_labels", [False, True])
def test_kernels_are_those_of_torch_func(random_labels):
    net, task = network(), modular_addition(5, 0.5, 0, random_labels)
    jacobians = gradients(net, task.pairs)
    summed = jacobians.sum(1) @ jacobians.sum(1).T
    torch.testing.assert_close(orders.summed_logits_kernel(net, task.pairs), summed)
    trace = torch.einsum("icp,jcp->ij", jacobians, jacobians)
    a, b = task.pairs.T
    hidden = (net.scale * (net.rows[a] + net.rows[5 + b] + net.first_bias)).relu()
    found = orders.centred_alignments(net, task.labels)
    assert found.of_trace_kernel == pytest.approx(centred_alignment(trace, task.labels))
    assert found.of_hidden == pytest.approx(centred_alignment(hidden @ hidden.T, task.labels))
    torch.testing.assert_close(found.covariance, 24 * torch.cov(hidden.T))


def test_alignments_of_known_kernels():
    labels = modular_addition(7, 0.5, 0).labels
    ideal = orders.label_kernel(labels)
    assert orders.alignment(3 * ideal, ideal) == pytest.approx(1)
    constant = torch.ones(49, 49, dtype=torch.float64)
    assert orders.alignment(constant, ideal) == pytest.approx((7 * 7**2) ** 0.5 / 49)
    assert centred_alignment(torch.eye(49, dtype=torch.float64), labels) == pytest.approx(
        (6 / 48) ** 0.5
    )


# Fourier


def test_signal_to_noise_of_known_waves():
    e = circles(amplitudes=(1.0, 3.0))
    one, two = e.chunk(2, dim=1)
    mixed = one + two  # each neuron 1² of one frequency and 3² of the other
    assert orders.neuron_snr(mixed) == pytest.approx(9)
    assert orders.decibels(orders.neuron_snr(mixed)) == pytest.approx(9.5424, abs=1e-4)
    # A wave of amplitude 3 has the mean square 9 / 2.
    ratio = orders.constant_snr(two + 0.5, two + 1.5)
    assert ratio == pytest.approx((4.5 / 0.25 + 4.5 / 2.25) / 2)


def test_chance_of_signal_to_noise():
    e = gaussian(97, 4000)
    assert orders.constant_snr(e, e) == pytest.approx(96, rel=0.05)
    assert fourier.frequency_dominance(e) == pytest.approx(0.0929, abs=0.001)
    assert orders.decibels(orders.neuron_snr(e)) == pytest.approx(-9.9, abs=0.05)


# commands


def test_command_with_its_control(tmp_path):
    arguments = (*TINY, "--steps", 30)
    alone = run(SCRIPT, *arguments, folder=tmp_path)
    assert alone.returncode == 0, alone.stderr
    folder = tmp_path / alone.stdout.splitlines()[-1]
    metrics = read_metrics(folder)
    assert metrics["step"][-1] == 30
    measured = {name for names in order_parameters.PANELS.values() for name in names}
    assert measured < metrics.keys() and all(
        (metrics[name] == metrics[name]).all() for name in measured
    )
    assert yaml.safe_load((folder / "config.yaml").read_text())["results"] == {
        "memorised_at": None,
        "grokked_at": None,
    }
    kept = torch.load(folder / "checkpoint.pt")["state"]["singular_values"]["kept"]
    assert list(kept) == [int(step) for step in metrics["step"]] and kept[0].shape == (16,)
    picture = (folder / "figure.png").read_bytes()
    words = [str(each) for each in arguments]
    assert order_parameters.main([*words, "--random_labels"]) == 0
    assert order_parameters.main(words) == 0  # draws again, the control beside it
    assert (folder / "figure.png").read_bytes() != picture
    control = read_metrics(folder.with_name("p=11,random_labels,width=16,steps=30,num_logs=12"))
    assert control["loss"][-1] != metrics["loss"][-1]


def test_stop_at_ends_with_the_measurement(tmp_path):
    words = ["--p", 23, "--width", 64, "--train_fraction", 0.8, "--lr", 2e-2, "--stop_at", 0.5]
    words += ["--beta2", 0.98, "--steps", 600, "--num_logs", 24, "--device", "cpu"]
    assert order_parameters.main([str(each) for each in words]) == 0
    (folder,) = (tmp_path / "runs/order_parameters").iterdir()
    m = read_metrics(folder)
    assert (m["test_accuracy"] > 0.5).tolist() == [False] * (len(m["step"]) - 1) + [True]
    assert 0 < m["step"][-1] < 600
    kept = torch.load(folder / "checkpoint.pt")["state"]["singular_values"]["kept"]
    assert list(kept) == [int(step) for step in m["step"]]


def test_killed_run_continues_as_if_it_had_not_been(tmp_path):
    options = (*TINY, "--steps", 40, "--checkpoint_every", 0)
    folder = tmp_path / "runs/order_parameters/killed"
    words = (SCRIPT, *options, "--name", "killed")
    ended = interrupt(*words, folder=tmp_path, run_folder=folder, rows=4, signal=signal.SIGKILL)
    assert ended.returncode == -signal.SIGKILL
    for name in ("killed", "whole"):
        assert order_parameters.main([*map(str, options), "--name", name]) == 0
    assert "continued" in (folder / "config.yaml").read_text()
    whole = folder.with_name("whole")
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    kept = [
        torch.load(each / "checkpoint.pt")["state"]["singular_values"]["kept"]
        for each in (folder, whole)
    ]
    assert all(torch.equal(kept[0][step], kept[1][step]) for step in kept[1])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--p", 91), "--p takes a prime number, got 91"),
        (("--p", 2), "--p takes a whole number of at least 3"),
        (("--train_fraction", 1), "--train_fraction takes a share that leaves a training and a"),
        (("--train_fraction", 1e-5), "--train_fraction takes a share that leaves a training and a"),
        (("--weight_decay=-1",), "--weight_decay takes a number of at least 0"),
        (("--stop_at", 2), "--stop_at takes a number of at least 0 and of at most 1, or none"),
        (("--sweep", "--alpha", 0.5), "--alpha is one of the axes of --sweep"),
        (("--sweep", "--p", 91), "--p takes a prime number, got 91"),
        (("--sweep", "--workers", 0), "--workers takes a whole number of at least 1"),
    ],
)
def test_bad_input_is_one_line_and_makes_no_folder(tmp_path, capsys, options, what):
    try:
        code = order_parameters.main([str(each) for each in options])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert what in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# sweeps


def test_the_command_of_a_run_gives_its_options_back():
    o = order_parameters.Options(p=11, random_labels=True, stop_at=0.5, lr=1e-4, out_dir="a b")
    script, *flags = sweeps.command("order_parameters", o)
    assert script == SCRIPT
    assert parse(order_parameters.Options, None, flags) == o


def test_sweep_draws_what_is_there_and_makes_only_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(order_parameters, "ALPHAS", (0.0, 0.5))
    monkeypatch.setattr(order_parameters, "DECAYS", (1.0,))
    options = [*TINY, "--steps", 10]
    words = [str(each) for each in (*options, "--sweep")]
    runs = tmp_path / "runs/order_parameters"
    there = runs / "p=11,width=16,steps=10,num_logs=12"
    missing = runs / "p=11,width=16,alpha=0.5,steps=10,num_logs=12"
    assert order_parameters.main(words[:-1]) == 0
    before = (there / "checkpoint.pt").stat().st_mtime_ns
    missing.mkdir()
    (missing / "notes.txt").touch()  # a folder that is no run
    assert order_parameters.main(words) == 1
    error = capsys.readouterr().err
    assert "1 of 2 runs failed" in error and "notes.txt" in error and error.count("\n") == 1
    phases = runs / "sweep,p=11,width=16,steps=10,num_logs=12"
    assert (phases / "figure.png").exists()

    def cells():
        results = yaml.safe_load((phases / "config.yaml").read_text())["results"]
        return {place: [each["seed"] for each in cell] for place, cell in results.items()}

    assert cells() == {"alpha=0.0,weight_decay=1.0": [0]}
    (missing / "notes.txt").unlink()
    assert order_parameters.main(words) == 0
    assert cells() == {"alpha=0.0,weight_decay=1.0": [0], "alpha=0.5,weight_decay=1.0": [0]}
    assert (there / "checkpoint.pt").stat().st_mtime_ns == before
    assert read_metrics(missing)["step"][-1] == 10
    made = yaml.safe_load((missing / "config.yaml").read_text())["provenance"]
    assert made["command"].startswith("python order_parameters.py --p=11 --width=16 --alpha=0.5")
    assert "1 threads" in made["device"]


def test_networks_in_one_pass_are_those_trained_alone():
    words = (*TINY, "--steps", 60, "--dtype", "float64", "--lr", 0.01, "--stop_at", 0.11)
    differing = [
        ("--seed", seed, "--alpha", alpha, "--weight_decay", decay)
        for seed, alpha, decay in ((0, 0.0, 1.0), (1, 0.5, 0.1), (2, 0.1, 0.001))
    ]

    def options(folder):
        return [
            parse(order_parameters.Options, None, [*map(str, (*words, *own)), "--out_dir", folder])
            for own in differing
        ]

    for o in options("alone"):
        order_parameters.one_run(o)
    order_parameters.in_one_pass(options("together"))
    lengths = set()
    for folder in Path("alone", "order_parameters").iterdir():
        alone = read_metrics(folder)
        together = read_metrics(Path("together", "order_parameters") / folder.name)
        lengths.add(alone["step"][-1])
        for column, values in alone.items():
            numpy.testing.assert_allclose(together[column], values, rtol=1e-7, err_msg=column)
    assert len(lengths) > 1, "otherwise none stopped before the others"
    order_parameters.in_one_pass(options("together"))  # finds them finished


def test_a_stopped_sweep_leaves_its_runs_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = start(SCRIPT, *TINY, "--steps", 100_000, "--sweep", "--workers", 1, folder=tmp_path)
    o = order_parameters.Options(
        p=11, width=16, num_logs=12, device="cpu", steps=100_000, weight_decay=1e-3
    )
    folder = sweeps.folder_of("order_parameters", o)
    while process.poll() is None and not (folder / "metrics.csv").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command without --overwrite continues" in err
    assert 0 < torch.load(folder / "checkpoint.pt")["step"] < 100_000
    assert not sweeps.finished("order_parameters", o)


def test_times_and_the_delay_between_them(tmp_path):
    cell = [order_parameters.Options(seed=seed) for seed in range(3)]
    for o, results in zip(cell, ((40, 100), (50, None)), strict=False):
        folder = sweeps.folder_of("order_parameters", o)
        folder.mkdir(parents=True)
        config = {
            "provenance": {"finished": "then", "device": "cpu", "command": ""},
            "results": dict(zip(("memorised_at", "grokked_at"), results, strict=True)),
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert order_parameters.times_of(cell) == [
        {"seed": 0, "memorised_at": 40, "grokked_at": 100, "delay": 60},
        {"seed": 1, "memorised_at": 50, "grokked_at": None, "delay": None},
    ]


@pytest.mark.slow
def test_a_small_configuration_groks_and_its_order_parameters_tell():
    o = {"p": 43, "width": 256, "train_fraction": 0.5, "lr": 1e-2, "beta2": 0.98, "steps": 1500}
    words = [f"--{name}={value}" for name, value in o.items()]
    found = {}
    for control in ([], ["--random_labels"]):
        assert order_parameters.main([*words, *control]) == 0
        options = order_parameters.Options(**o, random_labels=bool(control))
        folder = sweeps.folder_of("order_parameters", options)
        found[bool(control)] = read_metrics(folder)
        results = yaml.safe_load((folder / "config.yaml").read_text())["results"]
        assert (results["grokked_at"] is None) == bool(control)
        assert results["memorised_at"] < 200
    m, random = found[False], found[True]
    for name in ("rqi_distance", "kernel_alignment_hidden", "frequency_dominance"):
        assert m[name][-1] > 2 * random[name][-1]
    assert m["rqi_parallelogram"][-1] == 0
    assert m["effective_rank"][-1] == pytest.approx(random["effective_rank"][-1], rel=0.1)
