"""Wide inputs without the width: coordinates in the span of the data and the first layer.

Gradient descent with weight decay is equivariant under rotations of the input space, and neither
the loss's gradient nor the Jacobian norm's ever leaves the span of the training points and the
rows of the initial first layer. In an orthonormal basis of that span a network on p = 40,000
inputs is the same network, number for number, on as many inputs as there are vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Coordinates(NamedTuple):
    """Points and first-layer weights in one orthonormal basis of d vectors."""

    points: Tensor
    """(n, d), zero beyond the first `support` columns."""
    others: Tensor
    """(m, d), the other points, projected on the span: what lies outside meets no weight."""
    weights: Tensor
    """(h, d)."""
    support: int
    """Number of columns in which `points` can be non-zero."""


def plain(points: Tensor, others: Tensor, blocks: Callable[[], Iterable[Tensor]]) -> Coordinates:
    """The coordinates that the points came in; arguments as in `span`."""
    return Coordinates(points, others, torch.cat(list(blocks()), dim=1), points.shape[1])


def span(
    points: Tensor, others: Tensor, blocks: Callable[[], Iterable[Tensor]], kept: int
) -> Coordinates:
    """Coordinates in an orthonormal basis of the span of points and weights.

    The basis begins with the `kept` first coordinate axes, so that they keep their meaning; then
    come the directions of the points' remaining part, then those of the weights that are left.
    It is never formed: the coordinates are rows of the Cholesky factor of the Gram matrix.

    Noise that is iid N(0, 1) on the inputs beyond `kept` is iid N(0, 1) on the coordinates beyond
    `kept`, since an orthonormal basis leaves that law unchanged.

    Args:
        points: (n, p) training points.
        others: (m, p) points to be projected.
        blocks: gives, at each call, the weights (h, p) as blocks of columns, the first one
            `kept` columns wide, so that they need never be in memory as a whole.
        kept: number of coordinate axes kept.

    Returns:
        d = kept + n + h coordinates, or the plain ones where the vectors do not span fewer than p
        dimensions or depend on one another.
    """
    n, p = points.shape
    iterator = iter(blocks())
    kept_weights = next(iterator)
    d = n + len(kept_weights)
    if kept + d >= p:
        return plain(points, others, blocks)
    gram = points.new_zeros(d, d)
    cross = points.new_zeros(d, len(others))
    start = kept
    for block in iterator:
        end = start + block.shape[1]
        vectors = torch.cat([points[:, start:end], block])
        gram.addmm_(vectors, vectors.T)
        cross.addmm_(vectors, others[:, start:end].T)
        start = end
    factor, info = torch.linalg.cholesky_ex(gram)
    if info.item():
        return plain(points, others, blocks)
    projected = torch.linalg.solve_triangular(factor, cross, upper=False).T
    return Coordinates(
        torch.cat([points[:, :kept], factor[:n]], dim=1),
        torch.cat([others[:, :kept], projected], dim=1),
        torch.cat([kept_weights, factor[n:]], dim=1),
        kept + n,
    )


class FirstLayer(torch.nn.Module):
    """x Wᵀ with W (h, d) in two blocks of columns: those that the training points reach, and more.

    Args:
        weight: (h, d) initial weights.
        support: number of leading columns in which training points can be non-zero.
    """

    def __init__(self, weight: Tensor, support: int) -> None:
        super().__init__()
        self.reached = torch.nn.Parameter(weight[:, :support].clone())
        self.beyond = torch.nn.Parameter(weight[:, support:].clone())
        # The loss leaves this block without a gradient, and torch's optimisers do not even decay
        # a parameter whose gradient is None. Keep it: `zero_grad(set_to_none=False)`.
        self.beyond.grad = torch.zeros_like(self.beyond)

    def forward(self, x: Tensor) -> Tensor:
        """(B, d) → (B, h), for any points."""
        near, far = x.split([self.reached.shape[1], self.beyond.shape[1]], dim=1)
        return near @ self.reached.T + far @ self.beyond.T

    def of_training_points(self, x: Tensor) -> Tensor:
        """(B, d) → (B, h), for points that are zero beyond the support.

        The product costs `support` columns instead of d. The Jacobian with respect to all d
        inputs is W still, and can be differentiated again.
        """
        near, far = x.split([self.reached.shape[1], self.beyond.shape[1]], dim=1)
        return near @ self.reached.T + _ZeroLinear.apply(far, self)


class _ZeroLinear(torch.autograd.Function):
    """x Wᵀ of an x that is known to be zero: no product, but the Jacobian of one."""

    # W comes with the layer and not as an argument, so that only x hangs on this node and
    # `backward(inputs=parameters)` can leave it out.
    @staticmethod
    def forward(ctx, x: Tensor, layer: FirstLayer) -> Tensor:
        ctx.layer = layer
        return x.new_zeros(len(x), len(layer.beyond))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.beyond, None
