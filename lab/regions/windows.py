"""The linear regions around points, each in a window of the plane that it spans with two others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from .distances import radii
from .found import Regions
from .geometry import Plane, SliceError, plane_through, square
from .search import partition

LIMIT = 100_000  # regions of a window


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
            "operator_norm": float((areas * self.regions.operator).sum() / areas.sum()),
            "point_operator_norm": float(self.regions.operator[self.own]),
            "radius": self.radius,
            "input_radius": self.input_radius,
            "point_alignment": self.alignment(),
        }


def planes(points: Tensor, samples: Sequence[int]) -> list[Plane]:
    """The planes through the first three points, the next three, and so on.

    Args:
        points: (N, D).
        samples: places of the points to take among them, three to a plane.

    Raises:
        SliceError: if they are not three to a plane, not among the points, or on one line; its
            text begins with "samples".
    """
    if len(samples) % 3 or not len(samples):
        raise SliceError(f"samples takes three points for each plane, got {len(samples)}")
    if max(samples) >= len(points):
        raise SliceError(f"samples takes places from 0 to {len(points) - 1}, got {max(samples)}")
    found = []
    for start in range(0, len(samples), 3):
        three = list(samples[start : start + 3])
        try:
            found.append(plane_through(points[three]))
        except SliceError as error:
            raise SliceError(f"samples {' '.join(map(str, three))}: {error}") from None
    return found


def window(
    network: nn.Module, plane: Plane, at: ArrayLike, half_width: float, limit: int = LIMIT
) -> Window:
    """The regions of `network` around a point of a plane.

    Args:
        network: of the layers that layers.py lists.
        plane: the plane.
        at: (2,), coordinates of the point.
        half_width: of the window, a square with the point in the middle, in units of the input.
        limit: of the number of regions.

    Raises:
        SliceError: if there are more regions than `limit`, or the half-width is not above zero.
    """
    at = numpy.asarray(at, dtype=float)
    points = plane.points(at[None])
    regions = partition(network, plane, square(at, half_width), limit)
    own, radius = regions.locate(at)
    return Window(points[0], regions, at, half_width, own, radius, float(radii(network, points)[0]))


def windows(
    network: nn.Module,
    points: Tensor,
    samples: Sequence[int],
    half_width: float,
    limit: int = LIMIT,
) -> list[Window]:
    """The window around each of the samples, in the planes of `planes`; arguments as there."""
    of_three = torch.as_tensor(samples).split(3)
    return [
        window(network, plane, at, half_width, limit)
        for plane, three in zip(planes(points, samples), of_three, strict=True)
        for at in plane.coordinates(points[three].detach().cpu().double())
    ]


def controls(
    network: nn.Module,
    points: Tensor,
    samples: Sequence[int],
    half_width: float,
    limit: int = LIMIT,
) -> list[Window]:
    """A window between each three samples, around their mean; arguments as for `windows`.

    The mean is brought to the samples' mean norm: without biases the regions are cones, finer where
    the norm is smaller.
    """
    found = []
    of_three = torch.as_tensor(samples).split(3)
    for plane, three in zip(planes(points, samples), of_three, strict=True):
        norm = points[three].norm(dim=1).mean().item()
        moved = replace(plane, origin=plane.origin * norm / plane.origin.norm())
        found.append(window(network, moved, (0, 0), half_width, limit))
    return found


def medians(windows: Sequence[Window]) -> dict[str, float]:
    """Of what is measured in each window."""
    each = [window.measured() for window in windows]
    return {name: float(numpy.median([m[name] for m in each])) for name in each[0]}
