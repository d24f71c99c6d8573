"""What an update draws: its points and its random directions, by seed and step alone.

Nothing that came before matters, so that a run goes on exactly where it was interrupted. Both kinds
belong to the run (`run.batches`, `run.generator`), and the training loop moves them from step to
step: a script holds the object, never a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lab.bench.seeds import generator, key

ORDERS = ("fixed", "shuffled")


class Batches:
    """The points of the current update.

    Args:
        seed: the run's seed.
        samples: number of training points.
        size: points of one update; None for all of them. The last batch of an epoch is smaller
            where `size` does not divide `samples`.
        order: "shuffled" anew for every epoch, or "fixed", the same batches in every epoch.
        device: of the points.
    """

    def __init__(
        self, seed: int, samples: int, size: int | None, order: str, device: torch.device
    ) -> None:
        self.seed, self.samples, self.order, self.device = seed, samples, order, device
        self.size = samples if size is None else min(size, samples)
        self.epoch_length = -(-samples // self.size)
        """Updates of one epoch."""
        self.epoch = -1
        self.at(0)

    def at(self, step: int) -> None:
        """Goes to the update after `step` others."""
        epoch, part = divmod(step, self.epoch_length)
        self.rows: Tensor | slice = slice(part * self.size, (part + 1) * self.size)
        if self.order == "shuffled" and self.epoch_length > 1:
            if epoch != self.epoch:
                draws = generator(self.seed, "order", epoch)
                self.permutation = torch.randperm(self.samples, generator=draws).to(self.device)
                self.epoch = epoch
            self.rows = self.permutation[self.rows]

    def __call__(self, values: Tensor) -> Tensor:
        """The rows of `values` (samples, …) that the current update learns from."""
        if isinstance(self.rows, slice):
            return values[self.rows]
        return values.index_select(0, self.rows)


class Draws:
    """A generator that is seeded anew for every update; see `Run.generator`."""

    def __init__(self, seed: int, use: tuple[object, ...], device: torch.device) -> None:
        self.seed, self.use = seed, use
        self.generator = torch.Generator(device)

    def at(self, step: int) -> None:
        """Goes to the update after `step` others."""
        self.generator.manual_seed(key(self.seed, *self.use, step))
