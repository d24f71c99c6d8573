"""Musat's flow and the Fourier measures against second routes; the commands that users type."""

import io
import itertools
import math

import numpy
import pytest
import torch

import norm_minimisation
from helpers import code_of, run
from lab.bench.errors import TrainingError, UserError
from lab.bench.files import read_rows
from lab.bench.seeds import generator
from lab.data.modular import modular_addition
from lab.drawings.norms import norm_figure
from lab.measures import fourier
from lab.methods.flow import ACTIVATIONS, ZeroLossFlow


def problem(p=7, pairs=20, width=40, activation="relu", ridge=0.0, std=0.5):
    task = modular_addition(p, pairs / p**2, 0)
    x = torch.nn.functional.one_hot(task.pairs + torch.tensor([0, p]), 2 * p).sum(1).double()
    y = torch.nn.functional.one_hot(task.labels, p).double() - 1 / p
    w1 = torch.empty(2 * p, width, dtype=torch.float64)
    w1.normal_(std=std, generator=generator(0, "first layer"))
    return x, y, task, ZeroLossFlow(x[task.train], y[task.train], w1, activation, ridge)


SIGMA = {
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "square": torch.square,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_velocity_is_minus_the_gradient_of_half_the_squared_norm(activation):
    _, _, _, flow = problem(activation=activation)
    w1 = flow.w1.clone().requires_grad_()
    hidden = SIGMA[activation](flow.x @ w1)
    w2 = torch.linalg.pinv(hidden) @ flow.y  # by singular values: another route than Cholesky
    half = 0.5 * (w1.square().sum() + w2.square().sum())
    (gradient,) = torch.autograd.grad(half, w1)
    end = flow.point()
    torch.testing.assert_close(end.velocity, -gradient, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(end.w2, w2.detach(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(end.squared_norms.sum(), 2 * half.detach())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_their_derivatives(activation):
    z = torch.linspace(-3, 3, 40, dtype=torch.float64, requires_grad=True)
    value, slope = ACTIVATIONS[activation](z)
    torch.testing.assert_close(value, SIGMA[activation](z))
    torch.testing.assert_close(slope, torch.autograd.grad(value.sum(), z)[0])


def test_a_step_is_as_long_as_stated():
    _, _, _, flow = problem(ridge=1e-8)
    before, velocity = flow.w1, flow.point().velocity
    flow.advance()
    ratio = float(before.norm() / velocity.norm())
    assert flow.time == pytest.approx(min(0.05, 0.02 * ratio), rel=1e-12)
    torch.testing.assert_close(flow.w1, before + flow.time * velocity)


def test_a_short_flow_generalises_without_leaving_zero_loss():
    x, _, task, flow = problem(p=17, pairs=190, width=256, ridge=1e-8, std=0.15)
    largest, norms = 0.0, []
    for _ in range(300):
        norms.append(float(flow.advance()))
        end = flow.point()
        error = (flow.outputs(flow.x, end.w2) - flow.y).square().mean()
        largest = max(largest, float(error))
    guesses = flow.outputs(x[task.test], end.w2).argmax(1)
    assert (guesses == task.labels[task.test]).double().mean() > 0.95
    assert largest < 1e-12
    assert norms[::50] == sorted(norms[::50], reverse=True)  # not each: it slides along kinks


def test_width_below_the_training_pairs():
    with pytest.raises(UserError, match="--width takes at least the number of training pairs, 20"):
        problem(width=19)


def test_a_singular_kernel_needs_a_ridge():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # one row twice
    y = torch.eye(3, dtype=torch.float64)
    w1 = torch.randn(2, 5, dtype=torch.float64, generator=generator(0, "w"))
    with pytest.raises(UserError, match="--ridge takes"):
        ZeroLossFlow(x, y, w1, "gelu", ridge=0.0)
    flow = ZeroLossFlow(x, y, w1, "gelu", ridge=1e-8)
    flow.ridge = 0.0  # as if the kernel had become singular on the way
    with pytest.raises(TrainingError, match="--ridge takes"):
        flow.advance()


def ideal(p=23, d=200, frequencies=(2, 5), amplitudes=(1.0, 3.0)):
    """Each column one frequency with a phase of its own, spread evenly: circles."""
    a = torch.arange(p, dtype=torch.float64)[:, None]
    phase = torch.arange(d // 2, dtype=torch.float64) * 2 * math.pi / (d // 2)
    parts = [
        m * torch.cos(2 * math.pi * k * a / p + phase)
        for k, m in zip(frequencies, amplitudes, strict=True)
    ]
    return torch.cat(parts, dim=1)


def test_measures_of_an_embedding_with_known_frequencies():
    e = ideal() + 0.7  # the mean is no frequency
    norms = fourier.frequency_norms(e)
    assert norms.shape == (11,)
    # m cos(…) over p numbers has the energy m² p / 2, in each of 100 columns.
    expected = torch.zeros(11, dtype=torch.float64)
    expected[1], expected[4] = (23 / 2 * 100) ** 0.5, 3 * (23 / 2 * 100) ** 0.5
    torch.testing.assert_close(norms, expected)
    spread = float(expected.std(correction=0) / expected.mean())
    assert fourier.norm_spread(e) == pytest.approx(spread)
    assert fourier.frequency_dominance(e) == pytest.approx(1)
    assert fourier.strongest_frequency(e).tolist() == [2] * 100 + [5] * 100
    points = fourier.plane(e, 5)
    radii = points.norm(dim=1)
    torch.testing.assert_close(radii, torch.full_like(radii, 3 * (100 / 2) ** 0.5))
    # Neighbours are 5 steps of the circle apart, forwards or backwards.
    angles = torch.atan2(points[:, 1], points[:, 0]).diff() / (2 * math.pi) * 23 % 23
    assert {round(float(x)) for x in angles} in ({5}, {18})


def test_mixed_frequencies_have_less_dominance():
    one, two = ideal(amplitudes=(1.0, 1.0)).chunk(2, dim=1)
    assert fourier.frequency_dominance(one + two) == pytest.approx(0.5, abs=0.01)
    assert fourier.frequency_dominance(one + 2 * two) == pytest.approx(0.8, abs=0.01)


def test_energy_is_preserved_in_every_column():
    e = torch.randn(11, 7, dtype=torch.float64, generator=generator(0, "e"))
    energy = fourier.coefficients(e).abs().square().sum(0)
    torch.testing.assert_close(energy, (e - e.mean(0)).square().sum(0))


def test_circles_ellipses_and_lines():
    p, k = 11, 3
    angle = 2 * math.pi * k * torch.arange(p, dtype=torch.float64) / p
    noise = 1e-12 * torch.randn(p, 4, dtype=torch.float64, generator=generator(0, "noise"))

    def only(long, short):  # of the frequency k alone
        e = torch.zeros(p, 4, dtype=torch.float64)
        e[:, 0], e[:, 2] = long * angle.cos(), short * angle.sin()
        return fourier.coefficients(e)[k - 1], e

    c, _ = only(2.0, 1.0)
    axes = torch.linalg.svdvals(torch.stack([c.real, c.imag]))
    assert float(axes[1] / axes[0]) == pytest.approx(0.5)
    # Every frequency the same ellipse, so that the average is known.
    everything = sum(
        torch.stack([2 * (j * angle).cos(), (j * angle).sin()], 1).repeat(1, 2)
        * torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
        for j in range(1, 6)
    )
    assert fourier.ellipticity(everything + noise) == pytest.approx(0.5)
    assert fourier.orthogonality(everything + noise) == pytest.approx(1)
    turned = everything.roll(2, 0)  # another number is called 0
    assert fourier.ellipticity(turned) == pytest.approx(0.5)
    assert fourier.orthogonality(turned) < 0.9
    line = everything[:, :1].repeat(1, 4).roll(1, 0)
    assert fourier.ellipticity(line) == pytest.approx(1)
    assert fourier.orthogonality(line) == pytest.approx(0)


def test_chance_levels_in_the_docstrings():
    e = torch.randn(23, 4096, dtype=torch.float64, generator=generator(0, "e"))
    harmonic = sum(1 / k for k in range(1, 12)) / 11
    assert fourier.frequency_dominance(e) == pytest.approx(harmonic, abs=0.005)
    many = [
        torch.randn(23, 1024, dtype=torch.float64, generator=generator(s, "e")) for s in range(40)
    ]

    def mean(measure):
        return float(torch.stack([measure(e) for e in many]).mean())

    assert mean(fourier.orthogonality) == pytest.approx(1 - (2 / math.pi / 1024) ** 0.5, abs=0.002)
    assert mean(fourier.ellipticity) == pytest.approx((math.pi / 2048) ** 0.5, rel=0.1)
    assert mean(fourier.norm_spread) == pytest.approx((10 / 11) ** 0.5 / 64, rel=0.1)


def test_an_even_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="odd"):
        fourier.coefficients(torch.zeros(10, 3))


def test_tied_inputs_are_all_different():
    o = norm_minimisation.Options(p=7, tied=True, width=30)
    x, _, task, flow = norm_minimisation.start(o, torch.device("cpu"))
    points = torch.cat([task.train, task.test])
    assert x.shape == (49, 7) and flow.w1.shape == (7, 30)
    assert len(points) == len(x[points].unique(dim=0)) == 7 * 8 // 2


def test_the_command_users_type(tmp_path):
    words = ("--p", 7, "--width", 64, "--steps", 40, "--num_logs", 9, "--sgd", "--lr", 0.02)
    done = run("norm_minimisation.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / done.stdout.splitlines()[-1]
    assert (folder / "figure.png").stat().st_size > 10_000
    table = read_rows(folder)
    assert {
        "time", "train_error", "test_accuracy", "squared_norm", "squared_norm_1", "squared_norm_2",
        "frequency_dominance", "norm_spread", "orthogonality", "ellipticity",
        "trained_train_error", "trained_test_accuracy", "trained_squared_norm",
    } <= set(table[0])  # fmt: skip
    assert table[0]["time"] == 0 and table[-1]["step"] == 40
    assert max(row["train_error"] for row in table) < 1e-12
    # Both start from the same weights, and the optimiser has kept up with the flow's time.
    assert table[0]["trained_squared_norm"] == table[0]["squared_norm"]
    late = 0.02 * table[-1]["trained_steps"] - table[-1]["time"]
    assert -1e-12 <= late < 0.02 + 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--p", 9), "--p takes a prime number, got 9"),
        (("--width", 263), "--width takes at least the number of training pairs, 264"),
        (("--train_fraction", 1), "--train_fraction takes"),
        (
            ("--p", 3, "--width", 4, "--ridge", 0, "--seed", 3),
            "--ridge takes a number large enough",
        ),
    ],
)
def test_bad_input(arguments, message, tmp_path, capsys):
    code = code_of(norm_minimisation.main, arguments)
    assert code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_the_numbers_of_the_figure_can_be_read():
    """Labels of an axis lie beside each other, those of the points within their panel."""
    m = {"time": numpy.array([0.0, 1.0]), "train_error": numpy.array([0.0, 1e-9])}
    lines = "train_accuracy", "test_accuracy", "frequency_dominance", "orthogonality"
    lines += "ellipticity", "norm_spread", "squared_norm", "squared_norm_1", "squared_norm_2"
    angles = 2 * math.pi * torch.arange(5) / 5
    circle = 0.7 * torch.stack([angles.cos(), angles.sin()], 1)
    flat = circle * torch.tensor([1.0, 0.3])
    drawing = norm_figure(m | {name: numpy.ones(2) for name in lines}, circle, flat, None, "")
    drawing.savefig(io.BytesIO())
    *_, before, after, spectrum = drawing.axes
    for axes in (before, after, spectrum):
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        shown = [label.get_window_extent() for label in axes.get_xticklabels()]
        shown = [box for box, tick in zip(shown, axes.get_xticks(), strict=True) if tick in ticks]
        assert all(a.x1 + 20 < b.x0 for a, b in itertools.pairwise(shown))
        for label in axes.texts:
            box = label.get_window_extent()
            assert box.x1 < axes.bbox.x1 and box.y1 < axes.bbox.y1
    assert ticks == [1, 2]
    assert spectrum.get_ylim()[1] > 1.02 * max(line.get_ydata().max() for line in spectrum.lines)
