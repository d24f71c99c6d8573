"""The figure of xor_grokking.py."""

from __future__ import annotations

import numpy
from matplotlib.figure import Figure

from lab.bench import plots

NORMS = 0.0, 0.7  # ends of the colours, so that both rows of Figure 4 can be compared
NOISE = "accuracy_at_"  # and its standard deviation: the columns of accuracies under noise


def robustness_figure(m: dict[str, numpy.ndarray], typed: str) -> Figure:
    """The paper's two panels: alignment of a point, and accuracy with and without noise.

    Args:
        m: columns of xor_grokking.py's metrics.
        typed: the line beneath.
    """
    drawing, (left, right) = plots.panels(2, typed)
    drawn = m["alignment_of_point"], m["centroid_norm_of_point"], "norm of the centroid", NORMS
    plots.coloured_line(left, m["step"], *drawn)
    left.set_ylabel("centroid alignment of a training point")
    right.plot(m["step"], m["train_accuracy"], color="black", ls="--", label="train")
    right.plot(m["step"], m["test_accuracy"], color="black", label="test")
    noisy = {name.removeprefix(NOISE): m[name] for name in m if name.startswith(NOISE)}
    plots.graded_lines(right, m["step"], {f"noise, σ = {s}": y for s, y in noisy.items()})
    right.set_ylabel("accuracy")
    right.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    for axes in (left, right):
        plots.step_axis(axes, m["step"][-1])
    return drawing
