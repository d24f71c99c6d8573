"""Many convex polygons at once, and how lines cut them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray


@dataclass
class Polygons:
    """P convex polygons, each with a mark that its pieces inherit."""

    corners: NDArray
    """(P, V, 2), in anticlockwise order, the last one repeated up to V."""
    sides: NDArray
    """(P,), the number of corners."""
    patterns: NDArray
    """(P,), uint64: which units are active, hashed."""

    def __len__(self) -> int:
        return len(self.sides)

    def __getitem__(self, rows) -> Polygons:
        return Polygons(self.corners[rows], self.sides[rows], self.patterns[rows])

    def centres(self) -> NDArray:
        """(P, 2), the means of the corners, inside."""
        real = numpy.arange(self.corners.shape[1]) < self.sides[:, None]
        return (self.corners * real[..., None]).sum(1) / self.sides[:, None]


def halves(
    corners: NDArray, sides: NDArray, heights: NDArray
) -> tuple[tuple[NDArray, NDArray], tuple[NDArray, NDArray]]:
    """Corners and their numbers of the parts above and below the line of each of P polygons.

    Args:
        corners: (P, V, 2).
        sides: (P,).
        heights: (P, V), of the corners over the line, of both signs; 0 for a corner on the line.
    """
    rows, slots = numpy.arange(len(corners)), numpy.arange(corners.shape[1])
    real = slots < sides[:, None]
    before = numpy.take_along_axis(heights, (slots - 1) % sides[:, None], 1)

    def stretch(inside: NDArray, before_inside: NDArray) -> tuple[NDArray, NDArray]:
        """Of a convex polygon's corners, those on one side follow each other: start, number."""
        return (inside & ~before_inside & real).argmax(1), (inside & real).sum(1)

    def crossing(a: NDArray, b: NDArray) -> NDArray:
        """Where the side from corner a, above the line, to b, on or below it, meets the line."""
        share = heights[rows, a] / (heights[rows, a] - heights[rows, b])
        return corners[rows, a] + share[:, None] * (corners[rows, b] - corners[rows, a])

    up, n_up = stretch(heights > 0, before > 0)
    down, n_down = stretch(heights < 0, before < 0)
    last = (up + n_up - 1) % sides
    leaving, entering = crossing(last, (last + 1) % sides), crossing(up, (up - 1) % sides)

    def half(start: NDArray, number: NDArray, first: NDArray, second: NDArray):
        slots = numpy.arange(number.max() + 2)
        part = corners[rows[:, None], (start[:, None] + slots) % sides[:, None]]
        part = numpy.where((slots >= number[:, None])[..., None], first[:, None], part)
        return numpy.where((slots > number[:, None])[..., None], second[:, None], part), number + 2

    above, below = half(up, n_up, leaving, entering), half(down, n_down, entering, leaving)
    width = max(above[0].shape[1], below[0].shape[1])
    return (widened(above[0], width), above[1]), (widened(below[0], width), below[1])


def widened(corners: NDArray, width: int) -> NDArray:
    """Corners (P, V, 2) with the last one repeated until there are `width`."""
    more = width - corners.shape[1]
    return numpy.concatenate([corners, corners[:, -1:].repeat(more, 1)], 1) if more else corners


def cross(a: NDArray, b: NDArray) -> NDArray:
    """(…), a × b of vectors (…, 2): the area that they span, anticlockwise positive."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
