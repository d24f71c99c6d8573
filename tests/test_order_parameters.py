"""Order parameters where their values are known, the phase diagram, and the script's commands."""

import math

import numpy
import pytest
import torch
import yaml

import order_parameters
import report
import sweep
from helpers import ROOT, code_of, run
from lab.bench.files import read_metrics
from lab.bench.options import parse
from lab.bench.seeds import generator
from lab.bench.statistics import Finished
from lab.bench.sweeps import Job
from lab.data.modular import modular_addition
from lab.measures import fourier, orders
from lab.networks.modular_mlp import ModularMLP
from lab.reports import phase_diagram
from lab.reports._groups import Runs

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
    covariance = orders.centred_kernel_alignments(
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
    k, t = (centring @ each.double() @ centring for each in (kernel, orders.label_kernel(labels)))
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
    found = orders.centred_kernel_alignments(net, task.labels)
    assert found.of_trace_kernel == pytest.approx(centred_alignment(trace, task.labels))
    assert found.of_hidden == pytest.approx(centred_alignment(hidden @ hidden.T, task.labels))
    torch.testing.assert_close(found.covariance, 24 * torch.cov(hidden.T))
    some = orders.hidden_covariance(net, task.pairs[task.test])
    torch.testing.assert_close(some, (len(task.test) - 1) * torch.cov(hidden[task.test].T))


def test_alignments_of_known_kernels():
    labels = modular_addition(7, 0.5, 0).labels
    ideal = orders.label_kernel(labels)
    assert orders.kernel_alignment(3 * ideal, ideal) == pytest.approx(1)
    constant = torch.ones(49, 49, dtype=torch.float64)
    assert orders.kernel_alignment(constant, ideal) == pytest.approx((7 * 7**2) ** 0.5 / 49)
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


def spectra_of(folder):
    """Singular values of the first layer by step, as the checkpoint has them."""
    moments = torch.load(folder / "checkpoint.pt")["state"]["snapshots"].values()
    return {moment["step"]: moment["kept"] for moment in moments}


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
    kept = spectra_of(folder)
    assert list(kept) == [int(step) for step in metrics["step"]] and kept[0].shape == (16,)
    picture = (folder / "figure.png").read_bytes()
    words = [str(each) for each in arguments]
    assert order_parameters.main([*words, "--random_labels"]) == 0
    assert order_parameters.main(words) == 0  # draws again, the control beside it
    assert (folder / "figure.png").read_bytes() != picture
    control = read_metrics(folder.with_name("p=11,random_labels,width=16,steps=30,num_logs=12"))
    assert control["loss"][-1] != metrics["loss"][-1]


def test_two_first_forms_over_test_pairs_and_nothing_else(tmp_path):
    found = []
    for measured_on in ("all", "test"):
        words = [*TINY, "--steps", 5, "--measured_on", measured_on, "--name", measured_on]
        assert order_parameters.main([str(each) for each in words]) == 0
        found.append(read_metrics(tmp_path / "runs/order_parameters" / measured_on))
    over_all, over_test = found
    differ = {name for name in over_all if (over_all[name] != over_test[name]).any()}
    assert differ == {"participation_ratio", "kernel_alignment_summed"}


def test_initial_weights_of_the_other_project():
    theirs = ModularMLP(97, 512, 0.0, generator(0, "network"), "normal").requires_grad_(False)
    assert theirs.rows.std() == pytest.approx(194**-0.5, rel=0.01)
    assert theirs.second.std() == pytest.approx(512**-0.5, rel=0.01)
    assert theirs.rows.abs().max() > 4 * 194**-0.5  # which a uniform draw never is
    assert not theirs.first_bias.any() and not theirs.second_bias.any()
    ours = network(97, 512)
    assert ours.rows.std() == pytest.approx((3 * 194) ** -0.5, rel=0.01) and ours.first_bias.any()


def test_stop_at_ends_with_the_measurement(tmp_path):
    words = ["--p", 23, "--width", 64, "--train_fraction", 0.8, "--lr", 2e-2, "--stop_at", 0.5]
    words += ["--beta2", 0.98, "--steps", 600, "--num_logs", 24, "--device", "cpu"]
    assert order_parameters.main([str(each) for each in words]) == 0
    (folder,) = (tmp_path / "runs/order_parameters").iterdir()
    m = read_metrics(folder)
    assert (m["test_accuracy"] > 0.5).tolist() == [False] * (len(m["step"]) - 1) + [True]
    assert 0 < m["step"][-1] < 600
    assert list(spectra_of(folder)) == [int(step) for step in m["step"]]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--p", 91), "--p takes a prime number, got 91"),
        (("--train_fraction", 1), "--train_fraction takes a share that leaves a training and a"),
        (("--train_fraction", 1e-5), "--train_fraction takes a share that leaves a training and a"),
    ],
)
def test_bad_input_is_one_line_and_makes_no_folder(tmp_path, capsys, options, what):
    code = code_of(order_parameters.main, options)
    assert code == 2
    error = capsys.readouterr().err
    assert what in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# the grid and its phase diagram


def test_the_command_of_a_run_gives_its_options_back():
    o = order_parameters.Options(p=11, random_labels=True, stop_at=0.5, lr=1e-4, out_dir="a b")
    script, *flags = Job("order_parameters", o).words()
    assert script == SCRIPT
    assert parse(order_parameters.Options, None, flags) == o


@pytest.mark.parametrize(("name", "p", "seeds"), [("", 59, 2), ("_p97", 97, 1)])
def test_the_grids_cross_alpha_and_weight_decay(name, p, seeds):
    jobs = sweep.jobs_in(sweep.grids_of(str(ROOT / f"configs/phase_diagram{name}.yaml")), {})
    assert {job.options.p for job in jobs} == {p} and {job.script for job in jobs} == {SCRIPT[:-3]}
    assert [(o.alpha, o.weight_decay, o.seed) for o in (job.options for job in jobs)] == [
        (alpha, decay, seed)
        for alpha in (0.0, 0.1, 0.25, 0.5)
        for decay in (1e-3, 1e-2, 1e-1, 1.0)
        for seed in range(seeds)
    ]


def test_the_official_runs_have_their_controls():
    jobs = sweep.jobs_in(sweep.grids_of(str(ROOT / "configs/order_parameters_official.yaml")), {})
    found = {(job.options.seed, job.options.random_labels) for job in jobs}
    assert found == {(seed, random) for seed in range(3) for random in (False, True)}
    assert {(job.options.init, job.options.measured_on) for job in jobs} == {("normal", "test")}


def test_the_phase_diagram_draws_what_is_finished(tmp_path, capsys):
    sizes = ("p=11", "width=16", "steps=10", "num_logs=12")
    options = [f"--{size}" for size in sizes]
    grid = ["order_parameters.py", *options, "--device=cpu", "--alpha", "0", "0.5"]
    picture = tmp_path / f"runs/order_parameters/phase_diagram,{','.join(sizes)}.png"
    assert report.main(["phase_diagram", *sizes]) == 2
    assert "there is no finished run" in capsys.readouterr().err

    assert sweep.main([*grid, "--weight_decay", "1.0", "--seed", "0:2"]) == 0
    assert sweep.main([*grid[:-1], "--weight_decay", "0.1"]) == 0
    assert order_parameters.main([*options, "--device=cpu", "--random_labels"]) == 0  # no part
    unfinished = tmp_path / "runs/order_parameters/unfinished"
    unfinished.mkdir()
    config = (picture.with_name("p=11,width=16,steps=10,num_logs=12") / "config.yaml").read_text()
    (unfinished / "config.yaml").write_text(
        config.replace("finished:", "begun:").replace("weight_decay: 1.0", "weight_decay: 5.0")
    )
    capsys.readouterr()
    assert report.main(["phase_diagram", *sizes]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[lines.index("grokked_at") + 2 :][:4] == [
        "| weight decay | alpha 0 | alpha 0.5 |",
        "|---|---|---|",
        "| 0.1 | – | not run yet |",
        "| 1 | – | – |",
    ]
    assert "| snr_neuron | – | " in printed
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture.name) in printed
    assert report.main(["phase_diagram", "q=59"]) == 2


def runs_of(*times):
    """Runs that memorised and grokked at these steps, the latter with a larger `order`."""
    return Runs(
        Finished(
            ROOT,
            {"seed": seed, "results": {"memorised_at": memorised, "grokked_at": grokked}},
            {"test_accuracy": numpy.array([1.0 if grokked else 0.0]), "step": numpy.array([0]),
             "order": numpy.array([2.0 + seed if grokked else 1.0]), "same": numpy.array([7.0])},
        )
        for seed, (memorised, grokked) in enumerate(times)
    )  # fmt: skip


def test_the_phase_diagram_says_who_got_there():
    came, never = (40, 100), (50, None)
    cells = {
        (0.0, 0.1): runs_of(came), (0.0, 1.0): runs_of(came, never), (0.5, 1.0): runs_of(never)
    }  # fmt: skip
    for axes, texts in zip(
        phase_diagram.figure(cells, "line").axes,
        (["40", "no run", "45", "50"], ["100", "no run", "100\n1 of 2", "never"],
         ["60", "no run", "60\n1 of 2", "never"]),
        strict=True,
    ):  # fmt: skip
        assert [text.get_text() for text in axes.texts] == texts
        assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "0.5"]
        assert [text.get_text() for text in axes.get_yticklabels()] == ["0.1", "1"]
    assert phase_diagram.steps_of(cells, "delay") == [
        {"weight decay": "0.1", "alpha 0": "60", "alpha 0.5": "not run yet"},
        {"weight decay": "1", "alpha 0": "60, –", "alpha 0.5": "–"},
    ]
    assert phase_diagram.order_parameters(cells) == [
        {"order parameter": "runs", "grokked": "2", "memorised only": "2", "apart": "–"},
        {"order parameter": "order", "grokked": "2", "memorised only": "1", "apart": "yes"},
        {"order parameter": "same", "grokked": "7", "memorised only": "7", "apart": "no"},
    ]


@pytest.mark.slow
def test_a_small_configuration_groks_and_its_order_parameters_tell():
    o = {"p": 43, "width": 256, "train_fraction": 0.5, "lr": 1e-2, "beta2": 0.98, "steps": 1500}
    words = [f"--{name}={value}" for name, value in o.items()]
    found = {}
    for control in ([], ["--random_labels"]):
        assert order_parameters.main([*words, *control]) == 0
        options = order_parameters.Options(**o, random_labels=bool(control))
        folder = Job("order_parameters", options).folder
        found[bool(control)] = read_metrics(folder)
        results = yaml.safe_load((folder / "config.yaml").read_text())["results"]
        assert (results["grokked_at"] is None) == bool(control)
        assert results["memorised_at"] < 200
    m, random = found[False], found[True]
    for name in ("rqi_distance", "kernel_alignment_hidden", "frequency_dominance"):
        assert m[name][-1] > 2 * random[name][-1]
    assert m["rqi_parallelogram"][-1] == 0
    assert m["effective_rank"][-1] == pytest.approx(random["effective_rank"][-1], rel=0.1)
