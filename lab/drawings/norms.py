"""The figure of norm_minimisation.py."""

from __future__ import annotations

import numpy
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lab.bench import plots
from lab.measures import fourier


def norm_figure(
    m: dict[str, numpy.ndarray], first: Tensor, last: Tensor, trained: str | None, typed: str
) -> Figure:
    """Accuracies, norms and measures along the flow, and its circles before and after.

    Args:
        m: columns of norm_minimisation.py's metrics.
        first, last: (p, d), the embedding at the start and at the end.
        trained: name of the optimiser whose network was trained as well, if one was.
        typed: the line beneath.
    """
    p = len(first)
    drawing, axes = plots.panels(3, typed, rows=2)
    (accuracies, norms, orders), (before, after, spectrum) = axes
    blue, orange, green, pink = plots.COLOURS[:4]

    lines = [
        (accuracies, "train_accuracy", "train, flow", blue, "--"),
        (accuracies, "test_accuracy", "test, flow", blue, "-"),
        (norms, "squared_norm", "flow, ‖W₁‖² + ‖W₂‖²", blue, "-"),
        (norms, "squared_norm_1", "flow, ‖W₁‖²", blue, "--"),
        (norms, "squared_norm_2", "flow, ‖W₂‖²", blue, ":"),
        (orders, "frequency_dominance", "frequency dominance", blue, "-"),
        (orders, "orthogonality", "orthogonality", pink, "-"),
        (orders, "ellipticity", "ellipticity", green, "-"),
        (orders, "norm_spread", "norm spread", orange, "-"),
    ]
    if trained:
        lines += [
            (accuracies, "trained_train_accuracy", f"train, {trained}", orange, "--"),
            (accuracies, "trained_test_accuracy", f"test, {trained}", orange, "-"),
            (norms, "trained_squared_norm", trained, orange, "-"),
        ]
    plots.curves(m, lines, against="time")
    accuracies.set_ylabel("accuracy")
    norms.set_yscale("log")
    norms.set_ylabel("squared norm")
    orders.set_ylabel("measure of the embedding")
    orders.set_ylim(-0.03, 1.03)
    for panel in (accuracies, norms, orders):
        panel.set_xscale("symlog", linthresh=0.1, linscale=0.5)
        panel.set_xlim(0, max(m["time"][-1], 0.1))
        panel.set_xlabel("time, in units of 1 / (learning rate × weight decay)")
    plots.legend(accuracies, f"the flow's train error ≤ {m['train_error'].max():.0e}")
    plots.legend(norms)
    plots.legend(orders)

    k = int(fourier.frequency_norms(last).argmax()) + 1
    # The same neurons in both panels, chosen at the end: in all neurons together every frequency
    # of a wide random embedding already draws a circle.
    tuned = fourier.strongest_frequency(last) == k
    for panel, features, when in ((before, first, "at the start"), (after, last, "at the end")):
        points = fourier.plane(features[:, tuned], k)
        turn = [a * pow(k, -1, p) % p for a in range(p + 1)]  # neighbours on the circle
        panel.plot(*points[turn].T, color="#999999", lw=1)
        panel.scatter(*points.T, c=range(p), cmap=plots.SEQUENTIAL, s=40, zorder=2)
        for a, point in enumerate(points.tolist()):
            panel.annotate(str(a), point, xytext=(4, 4), textcoords="offset points", fontsize=8)
        reach = 1.15 * float(points.abs().max()) or 1.0  # with room for the numbers
        panel.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.set_title(f"frequency {k}, {int(tuned.sum())} neurons, {when}", fontsize=10)
        panel.set_xlabel("long axis")
        panel.set_ylabel("short axis")
    frequencies = range(1, (p - 1) // 2 + 1)
    spectrum.plot(frequencies, fourier.frequency_norms(first), "o--", color=green, label="start")
    spectrum.plot(frequencies, fourier.frequency_norms(last), "o-", color=blue, label="end")
    spectrum.set_ylim(0, 1.05 * spectrum.dataLim.y1)
    spectrum.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    spectrum.set_xlabel("frequency")
    spectrum.set_ylabel("norm of the Fourier feature")
    plots.legend(spectrum)
    return drawing
