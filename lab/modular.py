"""Modular addition: all pairs (a, b) modulo p, their labels, and a split into training and test."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lab.errors import UserError
from lab.seeds import generator


class ModularTask(NamedTuple):
    """The p × p grid of pairs in the order a · p + b, and which of them train."""

    p: int
    pairs: Tensor
    """(p², 2), the operands a and b."""
    labels: Tensor
    """(p²,), (a + b) mod p, or uniform draws for the random-label control."""
    train: Tensor
    """(n,), indices of the training pairs, ascending."""
    test: Tensor
    """(p² − n,), indices of the test pairs, ascending."""


def modular_addition(
    p: int, train_fraction: float, seed: int, random_labels: bool = False
) -> ModularTask:
    """Addition modulo a prime p, with a training set drawn uniformly from all p² pairs.

    Args:
        p: the modulus, a prime.
        train_fraction: share of the pairs that train, rounded to the nearest whole pair.
        seed: seed of the split, and of the labels if they are random.
        random_labels: replaces every label by a uniform draw, a task that can be memorised only.

    Raises:
        UserError: if p is not a prime, or the fraction leaves no training or no test pair.
    """
    if p < 2 or any(p % divisor == 0 for divisor in range(2, int(p**0.5) + 1)):
        raise UserError(f"--p takes a prime number, got {p}")
    n = round(train_fraction * p * p)
    if not 0 < n < p * p:
        raise UserError(
            f"--train_fraction takes a share that leaves a training and a test pair of the "
            f"{p * p}, got {train_fraction:g}"
        )
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    labels = pairs.sum(1) % p
    if random_labels:
        labels = torch.randint(0, p, (p * p,), generator=generator(seed, "random labels"))
    order = torch.randperm(p * p, generator=generator(seed, "data"))
    return ModularTask(p, pairs, labels, order[:n].sort().values, order[n:].sort().values)
