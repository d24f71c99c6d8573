"""Smoothness of functions of a few discrete inputs: of signs, and of sequences of symbols.

A function f on the cube {−1, 1}ⁿ is a sum of *Walsh functions*, f = Σ_S f̂(S) Π_{i∈S} x_i over the
sets S of coordinates, and E f² = Σ f̂(S)². The energy f̂(S)² of large sets is what a change of one
sign does: Σ_i E (f(x) − f(x with the i-th sign changed))² / 4 = Σ |S| f̂(S)². (O'Donnell 2014,
*Analysis of Boolean Functions*, chapters 1 and 2.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MOST_POINTS = 8192  # of a cube; a larger cube is sampled
FLIPPED = 128  # of these, the points of which each sign is changed


class Cube:
    """The points of {−1, 1}ⁿ over which means are taken: all, or uniform draws where too many.

    From N draws the energy of each set is estimated without bias, (N f̂² − mean of f²) / (N − 1).
    The standard error of the share of degree d is about √(2 C(n, d)) / N for small shares: for
    n = 40 and N = 8192 0.001, 0.005 and 0.017 for d = 1, 2, 3; that of a single set of share w is
    2 √(w (1 − w) / N), at most 0.011.

    Args:
        n: signs.
        generator: source of the points, on the CPU.
        like: tensor whose device and precision the points take.
    """

    def __init__(self, n: int, generator: torch.Generator, like: Tensor) -> None:
        self.all = 2**n <= MOST_POINTS
        if self.all:
            bits = torch.arange(2**n)[:, None] >> torch.arange(n) & 1
        else:
            bits = torch.randint(0, 2, (MOST_POINTS, n), generator=generator)
        self.points = (2 * bits - 1).to(like)
        """(N, n), all of the cube or independent draws."""
        first, self.second = torch.triu_indices(n, n, 1, device=like.device)
        self.pairs = self.points[:, first] * self.points[:, self.second]

    def shares(self, f: Callable[[Tensor], Tensor], k: int) -> dict[str, Tensor]:
        """How the energy of f is spread; all shares are of E f², the mean's included.

        Args:
            f: points (B, n) -> values (B,).
            k: size of the parity of interest, that of the first k signs.

        Returns:
            `parity_share`, of the set {1 … k}; `energy_degree_0` … `energy_degree_3`, of all sets
            of that many signs, and `energy_higher`, of all larger ones; and `mean_degree`,
            Σ |S| f̂(S)² / Σ f̂(S)², from 0 (constant) over 1 (linear) to n.
        """
        x, values = self.points, f(self.points)
        number, energy = len(x), values.square().mean()

        def share(coefficients: Tensor) -> Tensor:
            total = coefficients.square().sum()
            if not self.all:
                total = (number * total - coefficients.numel() * energy) / (number - 1)
            return total / energy

        triples = (self.pairs * values[:, None]).T @ x / number  # (pairs, n); each set once:
        later = torch.arange(x.shape[1], device=x.device) > self.second[:, None]
        degrees = {
            "energy_degree_0": share(values.mean()),
            "energy_degree_1": share(values @ x / number),
            "energy_degree_2": share(values @ self.pairs / number),
            "energy_degree_3": share(triples[later]),
        }
        return {
            "parity_share": share((values * x[:, :k].prod(1)).mean()),
            **degrees,
            "energy_higher": 1 - sum(degrees.values()),
            "mean_degree": mean_degree(f, x if self.all else x[:FLIPPED]),
        }


def mean_degree(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Σ_i E (f(x) − f(x with the i-th sign changed))² / (4 E f²), means over the points x (B, n).

    The average sensitivity of f, in units of its energy: see `Cube.shares`.
    """
    n = x.shape[1]
    flipped = x[:, None] * (1 - 2 * torch.eye(n, device=x.device, dtype=x.dtype))
    values = f(x)
    changes = values[:, None] - f(flipped.flatten(0, 1)).unflatten(0, (-1, n))
    return changes.square().sum(1).mean() / (4 * values.square().mean())


def changes_by_one_symbol(
    logits_of: Callable[[Tensor], Tensor], sequences: Tensor, symbols: int
) -> dict[str, Tensor]:
    """How much the logits change when one symbol of a sequence does, over all such changes.

    Logits are taken less their mean over the symbols, which cross-entropy leaves free. Each of the
    `length` symbols is replaced by each of the other `symbols` − 1.

    Args:
        logits_of: sequences (B, length) -> logits (B, length, symbols), one answer a symbol.
        sequences: (N, length), whole numbers from 0 to symbols − 1.
        symbols: how many there are.

    Returns:
        `logit_change`, the mean norm of the change over the mean norm of the logits: √2 where a
        changed sequence is as good as another one, √(2 symbols / (length (symbols − 1))) for the
        copy with one-hot logits. `change_elsewhere`, the share of the squared change that falls
        on the other length − 1 answers: 0 for the copy, (length − 1) / length where all change
        alike.
    """
    length = sequences.shape[1]
    shifts = torch.arange(1, symbols, device=sequences.device)
    one = torch.eye(length, dtype=torch.long, device=sequences.device)
    changed = (sequences[:, None, None] + shifts[:, None, None] * one) % symbols
    # (N, other symbols, place of the change, length)

    def centred(some: Tensor) -> Tensor:
        logits = logits_of(some)
        return logits - logits.mean(2, keepdim=True)

    logits = centred(sequences)
    others = centred(changed.flatten(0, 2)).unflatten(0, changed.shape[:3])
    squares = (others - logits[:, None, None]).square().sum(4)  # … (place, answer)
    norms = logits.flatten(1).norm(dim=1)
    return {
        "logit_change": squares.sum(3).sqrt().mean() / norms.mean(),
        "change_elsewhere": 1 - squares.diagonal(dim1=2, dim2=3).sum() / squares.sum(),
    }
