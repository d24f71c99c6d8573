"""Wide inputs without the width: coordinates in the span of the data and the first layer.

Gradient descent with weight decay is equivariant under rotations of the input space, and neither
the loss's gradient nor the Jacobian norm's ever leaves the span of the training points and the
rows of the initial first layer. In an orthonormal basis of that span a network on p = 40,000
inputs is the same network, number for number, on as many inputs as there are vectors. `plain` is
what `span` replaces, and a bias-free `Linear` layer what `FirstLayer` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

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


def plain(
    points: Tensor, others: Tensor, blocks: Callable[[], Iterable[Tensor]], kept: int = 0
) -> Coordinates:
    """The coordinates that the points came in; arguments as in `span`, `kept` without effect."""
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
    """x Wᵀ with W (h, d), which costs the columns that x reaches, where those are the leading ones.

    On a CPU, points that are zero beyond the support, as training points in a span are, meet no
    weight there: value, Jacobian by all d inputs and every gradient are those of the product. (The
    gradient by weights that no point reaches is in `.grad` only; `torch.autograd.grad` has none.)

    Args:
        weight: (h, d) initial weights.
        support: number of leading columns in which training points can be non-zero.
    """

    def __init__(self, weight: Tensor, support: int) -> None:
        super().__init__()
        self.reached = torch.nn.Parameter(weight[:, :support].clone())
        self.beyond = torch.nn.Parameter(weight[:, support:].clone())
        self.zeros: Tensor | None = None  # the gradient by `beyond` of points that do not reach it

    def forward(self, x: Tensor) -> Tensor:
        """(B, d) → (B, h)."""
        near, far = x.split([self.reached.shape[1], self.beyond.shape[1]], dim=1)
        product = near @ self.reached.T
        # An accelerator would wait for the answer, and hardly feels the product.
        if x.device.type != "cpu" or far.count_nonzero():
            return product + far @ self.beyond.T
        if far.requires_grad:
            product.add_(_ZeroProduct.apply(far, self))
        return product.add_(_Zero.apply(self.beyond, self))


class _ZeroProduct(torch.autograd.Function):
    """x Wᵀ of an x that is known to be zero: no product, but the Jacobian of one."""

    # W comes with the layer and not as an argument, so that only x hangs on this node and
    # `backward(inputs=parameters)` can leave it out.
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FirstLayer) -> Tensor:
        ctx.layer = layer
        return x.new_zeros(()).expand(len(x), len(layer.beyond))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.beyond, None


class _Zero(torch.autograd.Function):
    """The number 0 whose backward pass puts zeros where W has no gradient.

    For an optimiser does not decay what has none. They are the same zeros every time, as long as
    nothing was added to them: to write 32 MB anew would be a tenth of an update.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, layer: FirstLayer) -> Tensor:
        ctx.layer = layer
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        layer = ctx.layer
        if layer.beyond.grad is None:
            if layer.zeros is None or layer.zeros._version > 0:
                layer.zeros = torch.zeros_like(layer.beyond)
            layer.beyond.grad = layer.zeros
        return None, None
