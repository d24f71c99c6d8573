"""What is found on a plane: its regions, with the network's map on each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
from numpy.typing import ArrayLike, NDArray

from .geometry import Plane
from .polygons import cross


@dataclass
class Regions:
    """R linear regions, cut with a window of the plane."""

    plane: Plane
    corners: NDArray
    """(R, V, 2), coordinates in anticlockwise order, the last one repeated up to V."""
    sides: NDArray
    """(R,), the number of corners."""
    patterns: NDArray
    """(R,), uint64: a hash of which units are active, the XOR of one random number for each."""
    maps: NDArray
    """(R, C, 3): the network is maps @ (s, t, 1) there, its output flattened."""
    frobenius: NDArray
    """(R,), ‖J‖_F of the Jacobian by the whole input."""
    operator: NDArray
    """(R,), ‖J‖₂."""
    centroids: NDArray
    """(R, D), μ = Jᵀ 1 (Theorem 4)."""

    def __len__(self) -> int:
        return len(self.sides)

    def polygons(self) -> list[NDArray]:
        """The corners (n, 2) of each region."""
        return [corners[:n] for corners, n in zip(self.corners, self.sides, strict=True)]

    def areas(self) -> NDArray:
        """(R,), in squared units of the input."""
        return cross(self.corners, numpy.roll(self.corners, -1, 1)).sum(1) / 2

    def distances(self, at: ArrayLike) -> NDArray:
        """(R,), from the point (s, t) to the nearest side of each region; negative outside."""
        edges = numpy.roll(self.corners, -1, 1) - self.corners
        lengths = numpy.linalg.norm(edges, axis=2)
        heights = cross(edges, at - self.corners) / numpy.where(lengths > 0, lengths, 1.0)
        return numpy.where(lengths > 0, heights, numpy.inf).min(1)

    def locate(self, at: ArrayLike) -> tuple[int, float]:
        """The region that holds the point (s, t), and its radius there.

        The radius is the distance to the region's nearest side; the window's sides count.
        """
        distances = self.distances(at)
        region = int(distances.argmax())
        return region, float(distances[region])
