"""The figure of comparison_to_ntk.py."""

from __future__ import annotations

import numpy
from matplotlib.figure import Figure

from lab.bench import plots


def feature_learning(steps: numpy.ndarray, kernel: numpy.ndarray) -> tuple[float, float]:
    """From the first 5 % of a changing kernel's way, ups and downs added up, to the last 5 %."""
    way = abs(numpy.diff(kernel)).cumsum()
    way /= way[-1]
    return steps[1:][way >= 0.05][0], steps[1:][way >= 0.95][0]


def regime_figure(
    m: dict[str, numpy.ndarray], contents: dict[str, tuple[str, ...]], typed: str
) -> Figure:
    """Kernel and inner product, the regime shaded, and alignment coloured by the centroid's norm.

    Args:
        m: columns of comparison_to_ntk.py's metrics.
        contents: its panels, as `plots.metric_panels` takes them.
        typed: the line beneath.
    """
    drawing = plots.metric_panels({"": m}, contents, typed)
    kernel, product, alignment, _ = drawing.axes
    if len(m["step"]) > 2 and numpy.ptp(m["ntk_mean"]) > 0:
        regime = feature_learning(m["step"], m["ntk_mean"])
        for panel in (kernel, product):
            label = "5 to 95 % of the kernel's change"
            panel.axvspan(*regime, color=plots.COLOURS[2], alpha=0.15, label=label)
        plots.legend(kernel)
    markers = m["alignment_of_point"], m["centroid_norm_of_point"]
    plots.coloured_line(alignment, m["step"], *markers, "norm of the centroid")
    return drawing
