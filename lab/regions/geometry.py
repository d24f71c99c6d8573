"""Planes of the input space, and squares on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


class SliceError(ValueError):
    """A slice of the input space that cannot be had: no plane, no area, or too many regions."""


@dataclass
class Plane:
    """x = origin + s · u + t · v, so that (s, t) has the distances of the input space."""

    origin: Tensor
    """(*input), float64."""
    directions: Tensor
    """(2, *input), float64, orthonormal."""

    def points(self, at: ArrayLike) -> Tensor:
        """Inputs (N, *input) at the coordinates (N, 2)."""
        return self.origin + torch.tensordot(torch.as_tensor(at).double(), self.directions, 1)

    def coordinates(self, x: Tensor) -> NDArray:
        """Coordinates (N, 2) of the points of the plane that are nearest to `x` (N, *input)."""
        return ((x - self.origin).flatten(1) @ self.directions.flatten(1).T).numpy()


def plane(origin: Tensor, first: Tensor, second: Tensor) -> Plane:
    """The plane through `origin` along two directions, all (*input).

    Raises:
        SliceError: if the directions span no plane.
    """
    origin, *spans = (part.detach().cpu().double() for part in (origin, first, second))
    spans = torch.nn.functional.normalize(torch.stack(spans).flatten(1), eps=0.0)
    basis, triangular = torch.linalg.qr(spans.T)
    lengths = triangular.diagonal()  # (2,), but (1,) where the inputs are numbers
    # The last is the angle's sine, nan if a direction is zero.
    if len(lengths) < 2 or not lengths.abs().min() > 1e-6:
        raise SliceError("a plane takes two directions, or three points, that are not on one line")
    directions = (basis * lengths.sign()).T.reshape(2, *origin.shape)
    return Plane(origin, directions)


def plane_through(points: Tensor) -> Plane:
    """The plane through three points (3, *input), its origin their mean.

    Raises:
        SliceError: if they are not three, lie on one line, or two of them are equal.
    """
    if len(points) != 3:
        raise SliceError(f"a plane takes three points, got {len(points)}")
    return plane(points.cpu().double().mean(0), points[1] - points[0], points[2] - points[0])


def square(centre: ArrayLike, half_width: float) -> NDArray:
    """Corners (4, 2) of a square with sides along the plane's directions.

    Raises:
        SliceError: if the half-width is not above zero and finite.
    """
    if not 0 < half_width < math.inf:
        raise SliceError(f"a square takes a finite half-width above 0, got {half_width}")
    return centre + half_width * numpy.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
