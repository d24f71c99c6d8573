"""Modular arithmetic: all pairs (a, b) modulo p, their labels, and a split."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lab.bench.errors import UserError
from lab.bench.seeds import generator

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # modulo p
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "x2_xy_y2": lambda a, b: a * a + a * b + b * b,
}
SPLITS = ("pairs", "unordered")
LARGEST_PRIME = 9973  # the last below 10,000; 10⁸ pairs


class ModularTask(NamedTuple):
    """The p × p grid of pairs in the order a · p + b, and which of them train."""

    p: int
    pairs: Tensor
    """(p², 2), the operands a and b."""
    labels: Tensor
    """(p²,), a ∘ b mod p, or uniform draws for the random-label control."""
    train: Tensor
    """(n,), indices of the training pairs, ascending."""
    test: Tensor
    """(p² − n,), indices of the test pairs, ascending."""

    def to(self, device: torch.device) -> ModularTask:
        """The same task with its tensors on a device."""
        return ModularTask(self.p, *(part.to(device) for part in self[1:]))

    def one_order(self) -> ModularTask:
        """The same task, in which only the pairs a ≤ b train or test.

        To a network with one embedding for both operands (a, b) and (b, a) are one input.
        """
        below = self.pairs[:, 0] <= self.pairs[:, 1]
        train, test = (part[below[part]] for part in (self.train, self.test))
        return self._replace(train=train, test=test)

    def unmirrored(self) -> Tensor:
        """Indices of the test pairs (a, b) of which (b, a) does not train either, ascending.

        A network with one embedding for both operands answers alike to both orders, so that a
        test pair whose mirror image trains tests symmetry, not addition.
        """
        a, b = self.pairs[self.test].T
        return self.test[~torch.isin(b * self.p + a, self.train)]


def modular_addition(
    p: int,
    train_fraction: float,
    seed: int,
    random_labels: bool = False,
    operation: str = "add",
    split: str = "pairs",
) -> ModularTask:
    """Addition, or another operation, modulo a prime p, with a training set drawn uniformly.

    Args:
        p: the modulus, a prime.
        train_fraction: share of the pairs that train, rounded to the nearest whole pair.
        seed: seed of the split, and of the labels if they are random.
        random_labels: replaces every label by a uniform draw, a task that can be memorised only.
        operation: one of `OPERATIONS`; x2_xy_y2 is a² + ab + b², as in Power et al. 2022.
        split: "pairs" draws from all p² pairs; "unordered" from the p (p + 1) / 2 sets {a, b},
            both orders of which then train or test together.

    Raises:
        UserError: if p is not a prime or too large, or the fraction leaves no pair on one side.
    """
    if p < 2 or any(p % divisor == 0 for divisor in range(2, int(p**0.5) + 1)):
        raise UserError(f"--p takes a prime number, got {p}")
    if p > LARGEST_PRIME:
        raise UserError(f"--p takes a prime of at most {LARGEST_PRIME:,}, for p² pairs, got {p}")
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    drawn_from = pairs if split == "pairs" else pairs.sort(1).values
    names = drawn_from @ torch.tensor([p, 1])  # those of one name stay together
    units = names.unique()
    n = round(train_fraction * len(units))
    if not 0 < n < len(units):
        raise UserError(
            f"--train_fraction takes a share that leaves a training and a test pair of the "
            f"{len(units)}, got {train_fraction:g}"
        )
    labels = OPERATIONS[operation](*pairs.T) % p
    if random_labels:
        labels = torch.randint(0, p, (p * p,), generator=generator(seed, "random labels"))
    order = torch.randperm(len(units), generator=generator(seed, "data"))
    trains = torch.isin(names, units[order[:n]])
    return ModularTask(p, pairs, labels, trains.nonzero()[:, 0], (~trains).nonzero()[:, 0])
