"""The linear regions around points, each in a window of the plane that it spans with two others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from numpy.typing import NDArray
from torch import Tensor, nn

from lab import plots
from lab.errors import UserError
from lab.regions import Plane, Regions, partition, plane_through, radii, square


class Window(NamedTuple):
    """The regions around one point."""

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

    def measured(self) -> dict[str, float]:
        """Number of regions, ‖J‖₂ (mean over the window's area, at the point), and both radii."""
        areas = self.regions.areas()
        return {
            "regions": len(self.regions),
            "operator_norm": (areas * self.regions.operator).sum() / areas.sum(),
            "point_operator_norm": self.regions.operator[self.own],
            "radius": self.radius,
            "input_radius": self.input_radius,
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


def windows(
    network: nn.Module, points: Tensor, samples: Sequence[int], half_width: float, limit: int
) -> list[Window]:
    """The regions of `network` around the samples, in the planes of `planes`.

    Args:
        network: of the layers that lab/regions.py lists.
        points: (N, D).
        samples: places of the points to take among them.
        half_width: of each window, a square with its point in the middle, in units of the input.
        limit: of the number of regions in a window.

    Raises:
        UserError: as `planes`, or if there are more regions than `limit`.
    """
    found, chosen = [], points[list(samples)].detach().double().cpu()
    everywhere = radii(network, chosen).tolist()
    for i, plane in enumerate(planes(points, samples)):
        for at, input_radius in zip(
            plane.coordinates(chosen[3 * i : 3 * i + 3]), everywhere[3 * i :], strict=False
        ):
            regions = partition(network, plane, square(at, half_width), limit)
            found.append(Window(regions, at, half_width, *regions.around(at), input_radius))
    return found


def draw(axes: Axes, window: Window, norm: Normalize) -> PolyCollection:
    """The regions, coloured by ‖J‖₂, and the point."""
    cells = PolyCollection(
        window.regions.polygons(), array=window.regions.operator, norm=norm,
        cmap=plots.SEQUENTIAL, edgecolor="black", linewidth=0.15,
    )  # fmt: skip
    axes.add_collection(cells)
    axes.plot(*window.at, "o", color="white", markeredgecolor="black", markersize=5)
    sides = window.half_width * numpy.array([-1, 1])
    axes.set(xlim=window.at[0] + sides, ylim=window.at[1] + sides, aspect="equal")
    return cells
