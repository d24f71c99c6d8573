"""Runs at their moments, with the linear regions around training points, and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor, nn

from lab.bench import plots
from lab.bench.files import read_config, short_names
from lab.bench.snapshots import moments_of
from lab.networks.mlp import relu_mlp_of
from lab.regions.windows import Window, controls, windows
from lab.reports import figure_7


class Picture(NamedTuple):
    """A run at one moment."""

    run: str
    """Its name."""
    label: str
    """What is written above it."""
    moment: str
    step: int
    network: nn.Module
    windows: list[Window]
    """One for each sample."""
    controls: list[Window]
    """One between each three samples."""


def pictures(
    folders: list[Path], points: Tensor, samples: Sequence[int], half_width: float, limit: int
) -> list[Picture]:
    """Runs when they had memorised and generalised, if they had, and at their end.

    Args:
        folders: finished runs that keep their states, of networks like `relu_mlp`.
        points: (N, D).
        samples, half_width, limit: as for `windows`.

    Raises:
        UserError: if a run keeps no states.
        SliceError: as `windows`.
    """
    names = short_names(folders)
    labels = [_label(read_config(folder)) for folder in folders]
    if len(set(labels)) < len(labels):
        labels = names
    found, looked_at = [], (points, samples, half_width, limit)
    for folder, name, label in zip(folders, names, labels, strict=True):
        moments = moments_of(folder)
        last = moments.pop("last")
        if last.step not in {moment.step for moment in moments.values()}:
            moments["last"] = last
        for moment, (step, weights) in moments.items():
            network = relu_mlp_of(weights)
            shown = windows(network, *looked_at), controls(network, *looked_at)
            found.append(Picture(name, label, moment, step, network, *shown))
    return found


def figure(points: Tensor, samples: Sequence[int], drawn: Sequence[Picture], typed: str) -> Figure:
    """A row for each sample: its image, and its regions and centroid in each picture.

    Args:
        points: (N, D), square images.
        samples: places of the points.
        drawn: with a window for each of the samples.
        typed: the line beneath.
    """
    columns = 1 + 2 * len(drawn)
    drawing, axes = plots.panels(columns, typed, rows=len(samples))
    drawing.set_size_inches(1.5 * columns + 1, 1.85 * len(samples) + 0.8)
    plots.say_beneath(drawing, typed)
    norms = numpy.concatenate([w.regions.operator for p in drawn for w in p.windows])
    highest = norms.max() or 1.0
    # A few dead regions would take the scale for themselves.
    norm = LogNorm(max(numpy.quantile(norms, 0.01), 1e-6 * highest), highest, clip=True)
    for axis in axes.flat:
        axis.grid(False)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    image = (int(points.shape[1] ** 0.5), -1)
    for row, i in enumerate(samples):
        axes[row, 0].imshow(points[i].reshape(image).cpu().numpy(), cmap="gray")
        axes[row, 0].set_ylabel(f"training point {i}", fontsize=9)
        for picture, left, right in zip(drawn, axes[row, 1::2], axes[row, 2::2], strict=True):
            window = picture.windows[row]
            cells = draw(left, window, norm)
            nearest = f"nearest\nboundary {window.radius:.2g} input units"
            left.set_xlabel(f"{len(window.regions):,} regions; {nearest}", fontsize=9)
            centroid = window.centroid()
            end = centroid.abs().max()
            right.imshow(centroid.reshape(image).numpy(), cmap="RdBu_r", vmin=-end, vmax=end)
            right.set_xlabel(f"centroid,\ncosine {window.alignment():.2f}", fontsize=9)
            if row == 0:
                title = f"{picture.moment}, step {picture.step:,}\n{picture.label}"
                left.set_title(title, fontsize=10)
    aspect = 15 * len(samples)
    drawing.colorbar(cells, ax=axes, label="‖J‖₂ on the region", shrink=0.8, aspect=aspect)
    return drawing


def draw(axes: Axes, window: Window, norm: Normalize) -> PolyCollection:
    """The regions, coloured by ‖J‖₂, and the point."""
    norms = window.regions.operator
    sides = numpy.where(norm(norms) < 0.6, "white", "black")  # seen on dark and on light
    cells = PolyCollection(
        window.regions.polygons(), array=norms, norm=norm,
        cmap=plots.SEQUENTIAL, edgecolor=sides, linewidth=0.2,
    )  # fmt: skip
    axes.add_collection(cells)
    axes.plot(*window.at, "o", color="white", markeredgecolor="black", markersize=5)
    ends = window.half_width * numpy.array([-1, 1])
    axes.set(xlim=window.at[0] + ends, ylim=window.at[1] + ends, aspect="equal")
    return cells


def _label(config: dict[str, Any]) -> str:
    """What regularises, as a title has it."""
    jr = config["jr"]
    if "jr_weight" not in config:
        return f"λ_Jac {jr:g}"
    return figure_7.label(jr) if jr is None else f"‖J‖ {figure_7.label(jr)}"  # a level
