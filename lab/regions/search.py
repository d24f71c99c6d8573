"""The linear regions of a piecewise affine network on a plane: exact, without sampling.

A network of affine layers and (leaky) ReLUs is affine on each of finitely many convex polytopes,
its linear regions (Balestriero et al. 2019). Their cut with a two-dimensional plane is found layer
by layer, after Humayun et al. 2023 (SplineCam): on a polygon on which everything before is affine,
every unit of the next activation is zero on a line, and these lines cut the polygon into pieces.

The networks are those of layers.py; how polygons are cut is in polygons.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from utils import jacobian

from .found import Regions
from .geometry import Plane, SliceError
from .layers import advance, frozen_steps, inactive_slope, run_gated, widths_of
from .polygons import Polygons, halves, widened

BLOCK = 2**21  # units times polygons that are looked at together, of 8 bytes and a few copies


def partition(
    network: nn.Module,
    where: Plane,
    window: ArrayLike,
    limit: int = 100_000,
    tolerance: float = 1e-9,
) -> Regions:
    """The linear regions of `network` on a convex polygon of a plane, in float64 on the CPU.

    A unit cuts a polygon where its line leaves more than `tolerance` of it on both sides, so that
    the only regions to be missed are slivers thinner than that.

    Args:
        network: of the layers that layers.py lists.
        where: the plane.
        window: (V, 2), corners in anticlockwise order.
        limit: of the number of regions.
        tolerance: in units of the window's diameter.

    Raises:
        ValueError: if the network is no module, has a layer of another kind, or normalises with
            the statistics of the batch.
        SliceError: if there are more regions than `limit`.
    """
    steps = frozen_steps(network)
    window = numpy.asarray(window, dtype=float)
    reach = numpy.linalg.norm(window, axis=1).max()
    # Every affine map is carried as its values at three fixed points of the plane, on which an
    # affine layer then acts as on any others.
    frame = where.points(reach * numpy.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    widths = widths_of(steps, frame[:1])
    search = _Search(
        steps=steps,
        reach=reach,
        block=max(1, BLOCK // max([1, *widths])),
        keys=[
            numpy.random.default_rng(layer).integers(2**64, size=width, dtype=numpy.uint64)
            for layer, width in enumerate(widths)
        ],
        limit=limit,
        tolerance=tolerance * numpy.linalg.norm(window[:, None] - window, axis=2).max(),
    )
    whole = Polygons(window[None], numpy.array([len(window)]), numpy.zeros(1, numpy.uint64))
    leaves = [
        (polygons, *_pieces(steps, values, gates, reach, frame.shape[1:]))
        for polygons, values, gates in search.leaves(0, whole, [frame], [])
    ]
    polygons = [leaf[0] for leaf in leaves]
    width = max(part.corners.shape[1] for part in polygons)
    return Regions(
        where,
        numpy.concatenate([widened(part.corners, width) for part in polygons]),
        numpy.concatenate([part.sides for part in polygons]),
        numpy.concatenate([part.patterns for part in polygons]),
        *(numpy.concatenate(parts) for parts in list(zip(*leaves, strict=True))[1:]),
    )


@dataclass
class _Search:
    steps: list[nn.Module | str]
    reach: float
    block: int  # polygons looked at together
    keys: list[NDArray]  # of the units of each activation
    limit: int
    tolerance: float
    found: int = 1  # regions so far

    def leaves(
        self, at: int, polygons: Polygons, values: list[Tensor], gates: list[Tensor]
    ) -> Iterator[tuple[Polygons, Tensor, list[Tensor]]]:
        """Cuts by the activations from step `at` on.

        Depth first and in blocks, so that only one block a layer is in memory.

        Args:
            at: the next step.
            polygons: P of them.
            values: the stack of `advance`, each (3 P, *shape), at the three points.
            gates: slopes (P, *shape) of the activations before.
        """
        values = list(values)
        at = advance(self.steps, at, values)
        if at == len(self.steps):
            yield polygons, values[-1], gates
            return
        lines = _lines(values[-1], self.reach)  # (P, 3, n)
        pieces, parents = self.cut(polygons, lines)
        keys, slope = self.keys[len(gates)], inactive_slope(self.steps[at])
        for start in range(0, len(pieces), self.block):
            block = pieces[start : start + self.block]
            of = parents[start : start + self.block]
            homogeneous = numpy.concatenate([block.centres(), numpy.ones((len(block), 1))], 1)
            active = numpy.einsum("pk,pkn->pn", homogeneous, lines[of]) > 0
            change = numpy.bitwise_xor.reduce(numpy.where(active, keys, numpy.uint64(0)), axis=1)
            block = replace(block, patterns=block.patterns ^ change)
            rows = torch.from_numpy(of)
            inherited = [
                value.unflatten(0, (-1, 3)).index_select(0, rows).flatten(0, 1) for value in values
            ]
            gate = torch.from_numpy(numpy.where(active, 1.0, slope))
            gate = gate.reshape(len(block), *values[-1].shape[1:])
            inherited[-1] = inherited[-1] * gate.repeat_interleave(3, 0)
            yield from self.leaves(
                at + 1,
                block,
                inherited,
                [*(before.index_select(0, rows) for before in gates), gate],
            )

    def cut(self, polygons: Polygons, lines: NDArray) -> tuple[Polygons, NDArray]:
        """All pieces of P polygons by n lines each, and which polygon (rows) each is a piece of.

        Args:
            polygons: P of them.
            lines: (P, 3, n): a, b, c of a s + b t + c, with a² + b² = 1.
        """
        corners, sides = polygons.corners.copy(), polygons.sides.copy()
        parents = numpy.arange(len(polygons))
        heights = corners @ lines[:, :2] + lines[:, 2:]  # (P, V, n)
        crossed = (heights.max(1) > self.tolerance) & (heights.min(1) < -self.tolerance)
        for unit in crossed.any(0).nonzero()[0]:
            rows = crossed[parents, unit].nonzero()[0]
            line = lines[parents[rows], :, unit]
            heights = (corners[rows] * line[:, None, :2]).sum(2) + line[:, 2:]
            heights[numpy.abs(heights) <= self.tolerance] = 0.0
            cut = (heights.max(1) > 0) & (heights.min(1) < 0)
            if not cut.any():  # the unit's line is another unit's as well
                continue
            rows, heights = rows[cut], heights[cut]
            self.found += len(rows)
            if self.found > self.limit:
                raise SliceError(
                    f"the slice holds more than {self.limit} regions; take a smaller slice or a "
                    "higher limit"
                )
            (above, n_above), (below, n_below) = halves(corners[rows], sides[rows], heights)
            width = max(corners.shape[1], above.shape[1])
            corners = widened(corners, width)
            corners[rows], sides[rows] = widened(above, width), n_above
            corners = numpy.concatenate([corners, widened(below, width)])
            sides = numpy.concatenate([sides, n_below])
            parents = numpy.concatenate([parents, parents[rows]])
        # Neighbours in one block, and no more corners than the polygons have.
        order = parents.argsort(kind="stable")
        pieces = Polygons(corners[:, : sides.max()], sides, polygons.patterns[parents])
        return pieces[order], parents[order]


def _lines(values: Tensor, reach: float) -> NDArray:
    """(P, 3, n): a, b, c of each unit's a s + b t + c, its gradient scaled to length 1.

    A unit that is constant, to rounding, gets the line 0 s + 0 t ± 1, which crosses nothing.
    """
    at = values.unflatten(0, (-1, 3)).flatten(2).numpy()
    lines = numpy.stack([(at[:, 1] - at[:, 0]) / reach, (at[:, 2] - at[:, 0]) / reach, at[:, 0]], 1)
    slopes = numpy.linalg.norm(lines[:, :2], axis=1, keepdims=True)
    constant = slopes * reach <= 1e-13 * numpy.abs(at).max((1, 2), keepdims=True)
    level = numpy.sign(lines[:, 2:]) * numpy.array([0.0, 0.0, 1.0])[:, None]
    return numpy.where(constant, level, lines / numpy.where(constant, 1.0, slopes))


def _pieces(
    steps: list[nn.Module | str],
    values: Tensor,
    gates: list[Tensor],
    reach: float,
    shape: Sequence[int],
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """maps, frobenius, operator and centroids of P regions, as `Regions` has them."""
    at = values.unflatten(0, (-1, 3)).flatten(2)  # (P, 3, C)
    maps = torch.stack([(at[:, 1] - at[:, 0]) / reach, (at[:, 2] - at[:, 0]) / reach, at[:, 0]], 2)
    inputs = torch.Size(shape).numel()
    size = max(1, BLOCK // (inputs * maps.shape[1]))
    frobenius, operator, centroids = [], [], []
    for start in range(0, len(maps), size):
        frozen = [gate[start : start + size] for gate in gates]
        # With its gates held, the network is affine, and its Jacobian the same at every input.
        zero = torch.zeros(min(size, len(maps) - start), *shape, dtype=torch.float64)
        j = jacobian(lambda x, frozen=frozen: run_gated(steps, x, frozen), zero)  # (P, C, D)
        gram = j @ j.mT if j.shape[1] <= j.shape[2] else j.mT @ j
        frobenius.append(torch.linalg.matrix_norm(j))
        operator.append(torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt())
        centroids.append(j.sum(1))
    return (maps.numpy(), *(torch.cat(part).numpy() for part in (frobenius, operator, centroids)))
