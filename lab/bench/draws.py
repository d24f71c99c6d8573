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
        self._buffers: dict[int, Tensor] = {}  # points -> their rows, where a CUDA graph looks
        self.at(0)

    def at(self, step: int) -> None:
        """Goes to the update after `step` others."""
        epoch, part = divmod(step, self.epoch_length)
        first = part * self.size
        self.points = min(self.size, self.samples - first)
        """Their number."""
        self.rows: Tensor | slice = slice(first, first + self.points)
        on_cuda, shuffled = self.device.type == "cuda", self.order == "shuffled"
        if self.epoch_length == 1 or not (shuffled or on_cuda):
            return
        if epoch != self.epoch and (shuffled or self.epoch < 0):
            self.permutation, self.epoch = self._order(epoch if shuffled else None), epoch
        self.rows = self.permutation[self.rows]
        if on_cuda:
            buffer = self._buffers.setdefault(self.points, torch.empty_like(self.rows))
            self.rows = buffer.copy_(self.rows)

    def _order(self, epoch: int | None) -> Tensor:
        """All rows in the order of an epoch, drawn on the CPU, so that devices agree on it."""
        if epoch is None:
            rows = torch.arange(self.samples)
        else:
            draws = generator(self.seed, "order", epoch)
            rows = torch.randperm(self.samples, generator=draws)
        if self.device.type == "cuda":  # from where a copy makes nothing wait
            return rows.pin_memory().to(self.device, non_blocking=True)
        return rows.to(self.device)

    def begins_epoch(self, step: int) -> bool:
        """Whether the update after `step` others is the first of its epoch."""
        return step % self.epoch_length == 0

    def __call__(self, values: Tensor) -> Tensor:
        """The rows of `values` (samples, …) that the current update learns from."""
        if isinstance(self.rows, slice):
            return values[self.rows]
        return values.index_select(0, self.rows)


class Draws:
    """A generator that is seeded anew for every update; see `Run.generator`.

    Args:
        seed: the run's seed.
        use: what it draws, which gives it numbers of its own.
        device: where it draws.
    """

    def __init__(self, seed: int, use: tuple[object, ...], device: torch.device) -> None:
        self.seed, self.use = seed, use
        self.generator = torch.Generator(device)

    def at(self, step: int) -> None:
        """Goes to the update after `step` others."""
        self.generator.manual_seed(key(self.seed, *self.use, step))
