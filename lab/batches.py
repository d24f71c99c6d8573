"""Minibatches that depend on the seed and the step alone, so that resume is exact."""

import functools

import torch
from torch import Tensor

from lab.seeds import generator

ORDERS = ("fixed", "shuffled")


@functools.lru_cache(maxsize=1)
def shuffled(seed: int, samples: int, epoch: int) -> Tensor:
    """The points (samples,) in the epoch's order, which depends on nothing that came before."""
    return torch.randperm(samples, generator=generator(seed, "order", epoch))


def minibatch(
    seed: int, step: int, samples: int, size: int | None, order: str = "shuffled"
) -> Tensor | slice:
    """Which points the update of this step learns from.

    Args:
        seed: the run's seed.
        step: updates made before this one.
        samples: number of training points.
        size: points of one update; None for all of them. The last batch of an epoch is smaller
            where `size` does not divide `samples`.
        order: "shuffled" anew for every epoch, or "fixed", the same batches in every epoch.
    """
    if size is None or size >= samples:
        return slice(None)
    epoch, part = divmod(step, -(-samples // size))
    rows = slice(part * size, (part + 1) * size)
    return rows if order == "fixed" else shuffled(seed, samples, epoch)[rows]
