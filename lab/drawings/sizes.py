"""The figure of circuit_efficiency.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from matplotlib.figure import Figure

from lab.bench import plots


def sizes_figure(
    t: dict[str, numpy.ndarray], critical_pairs: Sequence[float], number: int, typed: str
) -> Figure:
    """Least squared norm and test accuracy by training pairs, and where the two costs are equal.

    Args:
        t: (seeds, sizes), as `lab.measures.critical_size.tables` gives them.
        critical_pairs: of each seed; not finite where the costs never meet.
        number: of all pairs.
        typed: the line beneath.
    """
    pairs, seeds = t["pairs"][0], len(t["pairs"])
    blue, orange = plots.COLOURS[:2]
    drawing, (left, right) = plots.panels(2, typed)
    for name, prefix, colour in (("true labels", "", blue), ("random labels", "random_", orange)):
        for panel, key in ((left, "squared_norm"), (right, "test_accuracy")):
            table = t[prefix + key]
            panel.fill_between(pairs, table.min(0), table.max(0), color=colour, alpha=0.25, lw=0)
            panel.plot(pairs, table.mean(0), "o-", color=colour, ms=5, label=name)
    critical = numpy.array(critical_pairs)
    critical = critical[numpy.isfinite(critical)]
    if len(critical):
        label = f"equal cost, {critical.mean():.0f} pairs"
        label += f" ({critical.min():.0f} to {critical.max():.0f})" if len(critical) > 1 else ""
        for panel in (left, right):
            panel.axvspan(critical.min(), critical.max(), color="#000000", alpha=0.15, lw=0)
            panel.axvline(critical.mean(), color="#000000", lw=1.2, ls="--", label=label)
    left.set_ylabel("least squared norm at zero loss")
    right.set(ylabel="test accuracy", ylim=(-0.03, 1.03))
    for panel in (left, right):
        panel.set_xlabel(f"training pairs of {number}")
    plots.legend(left, title=f"mean and range of {seeds} seeds")
    return drawing
