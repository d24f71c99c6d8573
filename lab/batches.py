"""Minibatches whose order depends on the seed and the epoch alone, so that resume is exact."""

import functools

import torch
from torch import Tensor

from lab.seeds import generator


@functools.lru_cache(maxsize=1)
def order(seed: int, samples: int, epoch: int) -> Tensor:
    """The points (samples,) in the epoch's order, which depends on nothing that came before."""
    return torch.randperm(samples, generator=generator(seed, "order", epoch))


def minibatch(seed: int, step: int, samples: int, size: int | None) -> Tensor | slice:
    """Which points the update of this step learns from.

    Args:
        seed: the run's seed.
        step: updates made before this one.
        samples: number of training points.
        size: points of one update; None for all of them. The last batch of an epoch is smaller
            where `size` does not divide `samples`.
    """
    if size is None or size >= samples:
        return slice(None)
    epoch, part = divmod(step, -(-samples // size))
    return order(seed, samples, epoch)[part * size : (part + 1) * size]
