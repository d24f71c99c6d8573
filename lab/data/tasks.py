"""Tasks with a finite number of points: the parity of a few signs, and sequences to copy."""

from __future__ import annotations

import torch
from torch import Tensor

from lab.bench.errors import UserError
from lab.bench.seeds import generator

DATA, RANDOM = "data", "random labels"  # uses of generators


def distinct_points(number: int, values: int, components: int, draws: torch.Generator) -> Tensor:
    """Points (number, components) of whole numbers from 0 to values − 1, no two of them alike.

    Uniform draws, of which one that has come before is left out.

    Args:
        number: how many points.
        values: different values of a component.
        components: of a point.
        draws: generator, on the CPU.

    Raises:
        UserError: if there are not so many different points.
    """
    there_are = values ** min(components, 40)  # a trillion, when it is no longer all of them
    if number > there_are:
        raise UserError(
            f"--samples and --test_samples take at most {there_are} together, the number of "
            f"different points, got {number}"
        )
    found: dict[tuple[int, ...], None] = {}
    while len(found) < number:
        drawn = torch.randint(0, values, (number, components), generator=draws)
        found |= dict.fromkeys(map(tuple, drawn.tolist()))
    return torch.tensor(list(found)[:number])


def parity(
    number: int, n: int, k: int, seed: int, random_labels: bool = False
) -> tuple[Tensor, Tensor]:
    """Points (number, n) of signs −1 and 1, all different, and the products of the first k.

    Args:
        number, n, k: of points, of a point's signs, and of those that make its label.
        seed: of the points, and of the labels if they are random.
        random_labels: labels are those of other points, drawn alike: nothing to generalise to.

    Raises:
        UserError: if there are not so many different points.
    """
    x = 2 * distinct_points(number, 2, n, generator(seed, DATA)) - 1
    others = 2 * distinct_points(number, 2, n, generator(seed, RANDOM)) - 1 if random_labels else x
    return x, others[:, :k].prod(1)


def sequences_to_copy(
    number: int, symbols: int, length: int, seed: int, random_labels: bool = False
) -> tuple[Tensor, Tensor]:
    """Tokens (number, 2 · length), a sequence and as many blanks, and what fills the blanks.

    The sequences are all different. A blank is the token `symbols`; the answers (number, length)
    are the sequence itself, or another one if they are random.

    Args:
        number, symbols, length: of sequences, of different symbols, of symbols in a sequence.
        seed, random_labels: as for `parity`.

    Raises:
        UserError: if there are not so many different sequences.
    """
    drawn = distinct_points(number, symbols, length, generator(seed, DATA))
    tokens = torch.cat([drawn, torch.full_like(drawn, symbols)], dim=1)
    if random_labels:
        return tokens, distinct_points(number, symbols, length, generator(seed, RANDOM))
    return tokens, drawn
