"""The figure of order_parameters.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from matplotlib.figure import Figure

from lab.bench import plots

Metrics = dict[str, numpy.ndarray]


def orders_figure(
    contents: Mapping[str, Sequence[str]],
    m: Metrics,
    control: Metrics | None,
    snapshots: dict[str, Any],
    events: dict[str, float | None],
    typed: str,
) -> Figure:
    """The panels, with the control's curves if it is there, and the spectrum of the first layer.

    Args:
        contents: label -> columns of each panel.
        m: the measurements.
        control: those with random labels.
        snapshots: singular values of the first layer, kept along the training.
        events: what happened -> the step, None where it did not.
        typed: the line beneath.
    """
    drawing, axes = plots.grid(len(contents) + 1, typed)
    curves = {"-": m}
    if control is not None:
        curves["--"] = control
        drawing.suptitle("solid: true labels; dashed: random labels", fontsize=11)
    *panels, last = axes
    for panel, (label, names) in zip(panels, contents.items(), strict=True):
        for style, columns in curves.items():
            for colour, name in zip(plots.COLOURS, names, strict=False):
                shown = plots.in_words(name) if style == "-" else None
                panel.plot(columns["step"], columns[name], color=colour, ls=style, label=shown)
        plots.mark(panel, events, named=panel is panels[0])
        plots.legend(panel)
        panel.set_ylabel(label)
    kept = sorted((each["step"], each["kept"]) for each in snapshots.values())
    sigma = torch.stack([values for _, values in kept]).T.numpy()
    plots.graded_lines(last, [step for step, _ in kept], dict(enumerate(sigma)))
    for line in last.lines:
        line.set_linewidth(0.6)
    last.set_ylabel("singular values of the first layer")
    last.set_title("light: smallest", fontsize=10)
    plots.mark(last, events, named=False)
    for panel in axes:
        plots.step_axis(panel, m["step"][-1])
    return drawing
