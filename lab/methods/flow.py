"""Musat's flow: the least squared norm of a two-layer network that stays on the zero-loss manifold.

A network σ(X W₁) W₂ that fits its training data exactly, and is then only pulled by weight decay,
minimises ½(‖W₁‖² + ‖W₂‖²) among the networks that fit. The approximation of *The Geometry of
Grokking: Norm Minimization on the Zero-Loss Manifold* (Musat 2025, arXiv 2511.01938) lets W₂
follow at once, as the interpolator of least norm, and leaves a differential equation for W₁:

    H = σ(X W₁),   A = (H Hᵀ)⁻¹,   W₂ = Hᵀ A Y,
    dW₁/dt = Xᵀ[(A Y W₂ᵀ) ∘ σ′(X W₁)] − W₁,

minus the gradient of ½(‖W₁‖² + ‖W₂‖²) by W₁. One unit of time is 1 / (learning rate × weight
decay) updates of gradient descent.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lab.bench.errors import TrainingError, UserError

RIDGE = 1e-8  # times the mean of the diagonal of H Hᵀ
LONGEST_STEP = 0.05  # in units of time
RELATIVE_STEP = 0.02  # ‖ΔW₁‖ / ‖W₁‖


def relu(z: Tensor) -> tuple[Tensor, Tensor]:
    """max(z, 0) and its derivative, 0 at 0."""
    return torch.relu(z), (z > 0).to(z.dtype)


def gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    """z Φ(z), with Φ the normal distribution function, and its derivative Φ(z) + z φ(z)."""
    below = torch.special.ndtr(z)
    return z * below, below + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def square(z: Tensor) -> tuple[Tensor, Tensor]:
    """z² and 2 z."""
    return z * z, 2 * z


ACTIVATIONS = {"relu": relu, "gelu": gelu, "square": square}


class Point(NamedTuple):
    """A point of the flow: where it is, and where it goes."""

    w2: Tensor
    """(h, C), the interpolator of least norm."""
    velocity: Tensor
    """(d, h), dW₁/dt."""
    squared_norms: Tensor
    """(2,), ‖W₁‖² and ‖W₂‖²."""


class ZeroLossFlow:
    """The flow of W₁, by Euler steps of min(0.05, 0.02 ‖W₁‖ / ‖dW₁/dt‖) units of time.

    With a ridge r the kernel is H Hᵀ + r · mean(diag(H Hᵀ)) · I, so that the fit is exact only up
    to r. Where an activation has a kink, as ReLU has, the flow comes to slide along it, and its
    velocity does not vanish: judge convergence by the squared norm.

    Args:
        x: (n, d) training inputs.
        y: (n, C) targets.
        w1: (d, h) initial weights.
        activation: a key of `ACTIVATIONS`.
        ridge: r, relative to the mean of the kernel's diagonal.

    Raises:
        UserError: if fewer hidden units than training points leave no interpolator, or H Hᵀ is
            singular and the ridge too small to mend that.
    """

    def __init__(
        self, x: Tensor, y: Tensor, w1: Tensor, activation: str = "relu", ridge: float = RIDGE
    ) -> None:
        if w1.shape[1] < len(x):
            raise UserError(
                f"--width takes at least the number of training pairs, {len(x)}, since fewer "
                f"hidden units cannot fit every target; got {w1.shape[1]}"
            )
        self.x, self.y, self.w1 = x, y, w1
        self.activation = ACTIVATIONS[activation]
        self.ridge = ridge
        self.time = 0.0
        try:
            self.point()
        except TrainingError as error:
            raise UserError(str(error)) from None

    def point(self) -> Point:
        """W₂, dW₁/dt and the squared norms; raises TrainingError if H Hᵀ is singular."""
        hidden, slope = self.activation(self.x @ self.w1)
        kernel = hidden @ hidden.T
        diagonal = kernel.diagonal()
        largest = diagonal.max()
        diagonal.add_(self.ridge * diagonal.mean())
        factor, info = torch.linalg.cholesky_ex(kernel)
        # Rounding can leave a pivot of a singular kernel just above zero. Not `<=`, because of NaN.
        rounding = len(kernel) * torch.finfo(kernel.dtype).eps * largest
        if info.item() or not factor.diagonal().min().square() > rounding:
            raise TrainingError(
                f"--ridge takes a number large enough for the kernel H Hᵀ of the {len(kernel)} "
                f"training pairs to be inverted: it is singular at time {self.time:g} with "
                f"--ridge {self.ridge:g}; else take an --init_std nearer to its default"
            )
        dual = torch.cholesky_solve(self.y, factor)  # A Y
        w2 = (dual.T @ hidden).T  # Hᵀ A Y, in the order that is fast on a CPU
        velocity = self.x.T @ ((dual @ w2.T) * slope) - self.w1
        norms = torch.stack([self.w1.square().sum(), w2.square().sum()])
        return Point(w2, velocity, norms)

    def advance(self) -> Tensor:
        """Makes one step; returns ‖W₁‖² + ‖W₂‖² as it was before."""
        now = self.point()
        ratio = torch.linalg.vector_norm(self.w1) / torch.linalg.vector_norm(now.velocity)
        step = min(LONGEST_STEP, RELATIVE_STEP * float(ratio))
        self.w1 = self.w1.add(now.velocity, alpha=step)
        self.time += step
        return now.squared_norms.sum()

    def outputs(self, x: Tensor, w2: Tensor) -> Tensor:
        """σ(X W₁) W₂ of any points (B, d), as (B, C)."""
        return self.activation(x @ self.w1)[0] @ w2

    def state_dict(self) -> dict:
        """W₁ and the time."""
        return {"w1": self.w1, "time": self.time}

    def load_state_dict(self, state: dict) -> None:
        """Puts back what `state_dict` gave."""
        self.w1 = state["w1"].to(self.w1)
        self.time = state["time"]
