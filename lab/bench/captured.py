"""Updates as CUDA graphs, so that launching their kernels costs nothing.

An update of a small network is a hundred kernels of some microseconds, which a CPU launches more
slowly than a GPU runs them. So the training loop has the first updates made as a script writes
them, captures one as a graph, and makes the rest by replaying it. What differs from step to step
lies in buffers that stay where they are (`Batches`) or in generators that the graph knows
(`Draws`), so that every update is the one that the script would have made, bit for bit.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from lab.bench.draws import Batches, Draws

if TYPE_CHECKING:
    from lab.bench.runs import Run

WARM_UP = 3  # updates before a capture, which torch's notes on CUDA graphs ask for
Variant = Callable[[int], Hashable]


class Graphs:
    """The graphs of one run's updates; off CUDA, and with --eager, there are none.

    Args:
        run: whose device, batches and generators they use.
        state: what an update changes; its optimisers are told whether their step is captured.
        variant: step -> what the script's code for the update depends on beside its tensors; None
            where the code waits for the device, or no two updates are alike.
    """

    def __init__(self, run: Run, state: dict[str, Any], variant: Variant | None) -> None:
        self.device = run.device
        self.batches = [each for each in run.draws if isinstance(each, Batches)]
        self.generators = [each.generator for each in run.draws if isinstance(each, Draws)]
        # A graph holds no work of the CPU, such as drawing there.
        self.on = variant is not None and self.device.type == "cuda" and not run.options.eager
        self.on = self.on and all(g.device.type == "cuda" for g in self.generators)
        self.variant = variant
        self.made: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self.seen: Counter[Hashable] = Counter()
        for part in state.values():
            for optimiser in getattr(part, "parts", [part]):
                for group in getattr(optimiser, "param_groups", ()):
                    if "capturable" in group:  # Adam's kind; a checkpoint may have said otherwise
                        group["capturable"] = self.on
        if self.on:
            # One stream for all, since gradients are added up on the stream they first came on.
            self.stream = torch.cuda.Stream(self.device)

    def replay(self, step: int) -> bool:
        """Makes the update of `step`, if there is a graph of it."""
        graph = self.made.get(self._key(step)) if self.on else None
        if graph is not None:
            graph.replay()
        return graph is not None

    @contextlib.contextmanager
    def update(self, step: int) -> Iterator[None]:
        """Around the script's update: has it made, or captures it and then makes it."""
        if not self.on:
            yield
            return
        key = self._key(step)
        self.seen[key] += 1
        capturing = self.seen[key] > WARM_UP
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                if capturing:
                    yield from self._capture(key)
                else:
                    yield
            current.wait_stream(self.stream)
        if capturing:
            self.made[key].replay()  # since a capture computes nothing

    def _capture(self, key: Hashable) -> Iterator[None]:
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        capture = torch.cuda.graph(graph, stream=self.stream)
        capture.__enter__()
        try:
            yield
        except GeneratorExit:  # the update has failed, and its own error says why
            with contextlib.suppress(RuntimeError):
                capture.__exit__(None, None, None)
            raise
        capture.__exit__(None, None, None)
        self.made[key] = graph

    def _key(self, step: int) -> Hashable:
        """Updates with the same key are the same kernels on the same shapes."""
        assert self.variant is not None
        return (self.variant(step), *(batch.points for batch in self.batches))
