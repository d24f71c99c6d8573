"""A training step as one CUDA graph, so that launching its kernels costs nothing.

Untested on CUDA: it was written without a GPU at hand. On other devices the step is called as is,
and what a warm-up may change is tested there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

WARM_UP = 3  # calls before the capture, as torch's notes on CUDA graphs ask for


class Captured:
    """`step` replayed as a CUDA graph from its second call on; `step` itself off CUDA.

    Args:
        step: tensors -> scalar loss; makes one update. It reads nothing back from the device.
        network: all that the step trains.
        optimiser: of the network, with `capturable=True` on CUDA.
        generator: all that the step draws from, on the device.
    """

    def __init__(
        self,
        step: Callable[..., Tensor],
        network: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> None:
        self.step, self.network = step, network
        self.optimiser, self.generator = optimiser, generator
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Makes one update; returns its loss."""
        if inputs[0].device.type != "cuda":
            return self.step(*inputs)
        if self.graph is None:
            self._capture(inputs)
        if any(i.shape != buffer.shape for i, buffer in zip(inputs, self.inputs, strict=True)):
            return self.step(*inputs)  # the last batch of an epoch may be smaller
        for buffer, values in zip(self.inputs, inputs, strict=True):
            buffer.copy_(values)
        self.graph.replay()
        return self.loss.clone()  # the next replay writes over it

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = [values.clone() for values in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with (
            torch.cuda.stream(side),
            unchanged(self.network, self.optimiser, self.generator),
        ):
            for _ in range(WARM_UP):
                self.step(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(self.generator)
        self.optimiser.zero_grad()  # so that gradients live in the graph's own memory
        with torch.cuda.graph(self.graph):
            self.loss = self.step(*self.inputs)


@contextmanager
def unchanged(
    network: torch.nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator
) -> Iterator[None]:
    """Puts weights, the optimiser's averages and the generator back, in place, when it ends.

    In place, since a graph goes on with the very tensors it was captured with. Averages that
    were not there before become zero, with which optimisers begin.
    """

    def tensors() -> list[Tensor]:
        averages = [v for s in optimiser.state.values() for v in s.values() if torch.is_tensor(v)]
        return [*(p.detach() for p in network.parameters()), *averages]

    before, drawn = [t.clone() for t in tensors()], generator.get_state()
    yield
    after = tensors()
    for tensor in after[len(before) :]:
        tensor.zero_()
    for tensor, value in zip(after, before, strict=False):
        tensor.copy_(value)
    generator.set_state(drawn)
