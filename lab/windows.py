"""The linear regions around points, each in a window of the plane that it spans with two others.

What linear_regions.py looks at: `window` finds one, `pictures` those of runs at their moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from lab import plots
from lab.compare import names
from lab.errors import UserError
from lab.kept import kept_moments
from lab.models import relu_mlp_of
from lab.regions import Plane, Regions, partition, plane_through, radii, square
from lab.runs import read_config


class Window(NamedTuple):
    """The regions around one point."""

    point: Tensor
    """(D,), float64."""
    regions: Regions
    at: NDArray
    """(2,), the point's coordinates in the plane."""
    half_width: float
    """In units of the input."""
    own: int
    """The region that holds the point."""
    radius: float
    """Distance from the point to that region's boundary in the plane, at most `half_width`."""
    input_radius: float
    """The same in all directions of the input, without a bound."""

    def centroid(self) -> Tensor:
        """(D,), of the region that holds the point."""
        return torch.from_numpy(self.regions.centroids[self.own])

    def alignment(self) -> float:
        """Cosine of the angle between the point and its region's centroid."""
        return float(torch.cosine_similarity(self.point, self.centroid(), dim=0))

    def measured(self) -> dict[str, float]:
        """Regions, ‖J‖₂ (mean over the window's area, at the point), both radii, alignment."""
        areas = self.regions.areas()
        return {
            "regions": len(self.regions),
            "operator_norm": (areas * self.regions.operator).sum() / areas.sum(),
            "point_operator_norm": self.regions.operator[self.own],
            "radius": self.radius,
            "input_radius": self.input_radius,
            "point_alignment": self.alignment(),
        }


def planes(points: Tensor, samples: Sequence[int]) -> list[Plane]:
    """The planes through the first three points, the next three, and so on.

    Args:
        points: (N, D).
        samples: places of the points to take among them, the value of an option `--samples`.

    Raises:
        UserError: if they are not three to a plane, not among the points, or on one line.
    """
    if len(samples) % 3:
        raise UserError(f"--samples takes three points for each plane, got {len(samples)}")
    if max(samples) >= len(points):
        raise UserError(f"--samples takes places from 0 to {len(points) - 1}, got {max(samples)}")
    found = []
    for start in range(0, len(samples), 3):
        three = list(samples[start : start + 3])
        try:
            found.append(plane_through(points[three]))
        except UserError as error:
            raise UserError(f"--samples {' '.join(map(str, three))}: {error}") from None
    return found


def window(
    network: nn.Module, plane: Plane, at: ArrayLike, half_width: float, limit: int
) -> Window:
    """The regions of `network` around a point of a plane.

    Args:
        network: of the layers that lab/piecewise.py lists.
        plane: the plane.
        at: (2,), coordinates of the point.
        half_width: of the window, a square with the point in the middle, in units of the input.
        limit: of the number of regions.

    Raises:
        UserError: if there are more regions than `limit`.
    """
    at = numpy.asarray(at, dtype=float)
    points = plane.points(at[None])
    regions = partition(network, plane, square(at, half_width), limit)
    own, radius = regions.around(at)
    return Window(points[0], regions, at, half_width, own, radius, float(radii(network, points)[0]))


def windows(
    network: nn.Module, points: Tensor, samples: Sequence[int], half_width: float, limit: int
) -> list[Window]:
    """The window around each of the samples, in the planes of `planes`; arguments as there."""
    of_three = torch.as_tensor(samples).split(3)
    return [
        window(network, plane, at, half_width, limit)
        for plane, three in zip(planes(points, samples), of_three, strict=True)
        for at in plane.coordinates(points[three].detach().double().cpu())
    ]


def medians(windows: Sequence[Window]) -> dict[str, float]:
    """Of what is measured in each window."""
    each = [window.measured() for window in windows]
    return {name: float(numpy.median([m[name] for m in each])) for name in each[0]}


class Picture(NamedTuple):
    """A run at one moment."""

    run: int
    """Its place among the runs."""
    name: str
    label: str
    moment: str
    step: int
    network: nn.Module
    around: list[Window]
    """One for each sample."""
    between: list[Window]
    """As a control, one around the mean of each three samples, brought to their mean norm."""


def pictures(
    folders: list[Path], points: Tensor, samples: Sequence[int], half_width: float, limit: int
) -> list[Picture]:
    """Runs when they had memorised and generalised, if they had, and at their end.

    Args:
        folders: finished runs that keep their states, of networks like `relu_mlp`.
        points: (N, D).
        samples, half_width, limit: as for `windows`.

    Raises:
        UserError: as `windows`, or if a run keeps no states.
    """
    found, size = [], (half_width, limit)
    middles = []
    for plane, three in zip(
        planes(points, samples), torch.as_tensor(samples).split(3), strict=True
    ):
        # Without biases the regions are cones, finer where the norm is smaller.
        norm = points[three].norm(dim=1).mean().item()
        middles.append(replace(plane, origin=plane.origin * norm / plane.origin.norm()))
    for run, (folder, name) in enumerate(zip(folders, names(folders), strict=True)):
        moments, config = kept_moments(folder), read_config(folder / "config.yaml")
        label = f"--jr {config['jr']}".lower() if "jr" in config else name
        last = moments.pop("last")
        if last.step not in {moment.step for moment in moments.values()}:
            moments["last"] = last
        for moment, (step, weights) in moments.items():
            network = relu_mlp_of(weights)
            around = windows(network, points, samples, *size)
            between = [window(network, plane, (0, 0), *size) for plane in middles]
            found.append(Picture(run, name, label, moment, step, network, around, between))
    return found


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
