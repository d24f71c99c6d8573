"""Accuracy under attack: pyautoattack (Croce and Hein 2020, arXiv 2003.01690) with its faults met.

APGD-CE alone is called by that name here, and "standard" is the whole of AutoAttack.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lab.bench.errors import UserError

ATTACKS = ("apgd-ce", "standard")
Model = Callable[[Tensor], Tensor]


class Attacked(NamedTuple):
    """What an attack left."""

    accuracy: float
    """Share of the points that are still classified correctly."""
    points: Tensor
    """(B, *input), the attacked points; as they were where the attack failed."""
    perturbation: float
    """Largest |δ| of any coordinate."""


def under_attack(
    model: Model,
    x: Tensor,
    y: Tensor,
    attack: str,
    epsilon: float,
    generator: torch.Generator,
    batch_size: int = 128,
) -> Attacked:
    """Accuracy of `model` under perturbations of ℓ∞ norm `epsilon` that stay within [0, 1].

    The accuracy is our own count, on the points that the attack returned, after their range and
    their distance have been checked.

    Args:
        model: (B, *input) in [0, 1] -> scores (B, C) of C ≥ 2 classes, in any precision, the same
            for a point whenever it is asked. Normalisation is part of it
            (`lab.networks.mlp.Normalisation`).
        x: (B, *input), raw points in [0, 1]: images (B, channels, H, W), or flattened.
        y: (B,), int64, their classes.
        attack: "apgd-ce", APGD on the cross-entropy with 5 restarts of 100 steps, or "standard",
            AutoAttack's four attacks, which needs C ≥ 4.
        epsilon: largest change of any pixel, say 4 / 255.
        generator: source of the attack's draws; torch's global ones are left as they are.
        batch_size: points attacked at once.

    Raises:
        ValueError: if `x` leaves [0, 1], or the model gives no scores of classes.
        AssertionError: if the attack broke its own bounds.

    Warns:
        UserWarning: if `epsilon` is larger than 1, or no point is classified correctly.
    """
    if x.min() < 0 or x.max() > 1:
        raise ValueError(
            f"attacks take raw points in [0, 1], got values from {x.min():.3g} to {x.max():.3g}; "
            "put the normalisation into the model (lab.networks.mlp.Normalisation)"
        )
    if epsilon > 1:
        warnings.warn(
            f"an epsilon of {epsilon:g} is larger than 1, the whole range of a pixel; 4 levels of "
            f"256 are 4/255 = {4 / 255:.4f}",
            stacklevel=2,
        )
    if not (_classes(model, x, batch_size) == y).any():
        warnings.warn(
            "no point is classified correctly, so that there is nothing to attack; the accuracy "
            "under attack is 0",
            stacklevel=2,
        )
        return Attacked(0.0, x.clone(), 0.0)
    points = adversarial_points(model, x, y, attack, epsilon, generator, batch_size)
    perturbation = (points - x).abs().max().item()
    assert points.min() >= 0 and points.max() <= 1, "an attacked point left [0, 1]"
    # float32, in which the library computes, rounds a pixel by up to 6e-8.
    assert perturbation <= epsilon + 1e-6, f"a pixel was changed by {perturbation}"
    correct = _classes(model, points, batch_size) == y
    return Attacked(correct.cpu().double().mean().item(), points, perturbation)


def adversarial_points(
    model: Model,
    x: Tensor,
    y: Tensor,
    attack: str,
    epsilon: float,
    generator: torch.Generator,
    batch_size: int = 128,
) -> Tensor:
    """Attacked points (B, *input) in the precision of `x`, whatever its range: unchecked.

    The library clips to [0, 1]. It takes float32 images only, fails for other precisions and
    shapes, draws from torch's global generators, and removes the process's trace function.

    Raises:
        UserError: if pyautoattack is not installed.
    """
    try:
        from pyautoattack import AutoAttack  # here, so that --attack none goes without it
    except ModuleNotFoundError:
        raise UserError(
            "--attack takes the package pyautoattack, which is not installed; none goes without it"
        ) from None

    classes = _scores(model, x[:1]).shape[1]
    if attack == "standard" and classes < 4:
        raise ValueError(f"the standard attack needs 4 classes or more, the model has {classes}")
    shape = x.shape[1:]
    side = math.isqrt(shape.numel())
    flat = (1, side, side) if side**2 == shape.numel() else (1, 1, shape.numel())
    images = x.detach().float().reshape(len(x), *(shape if len(shape) == 3 else flat))

    def scores(images: Tensor) -> Tensor:
        return model(images.reshape(len(images), *shape).to(x.dtype)).float()

    custom = {"attacks": [attack], "version": "custom"}
    adversary = AutoAttack(
        scores,
        eps=epsilon,
        device=x.device,
        seed=int(torch.randint(2**31, (), generator=generator)),
        **({"version": "standard"} if attack == "standard" else custom),
    )
    targets = min(9, classes - 1)
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = targets
    traced = sys.gettrace()
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        try:
            points, _ = adversary.run_standard_evaluation(images, y, batch_size=batch_size)
        finally:
            sys.settrace(traced)
    return points.reshape(x.shape).to(x.dtype)


@torch.no_grad()
def _classes(model: Model, x: Tensor, batch_size: int) -> Tensor:
    return torch.cat([_scores(model, part).argmax(1) for part in x.split(batch_size)])


@torch.no_grad()
def _scores(model: Model, x: Tensor) -> Tensor:
    scores = model(x)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(
            "attacks take a model with scores (B, C) of two classes or more, this one maps "
            f"{tuple(x.shape)} to {tuple(scores.shape)}"
        )
    return scores
