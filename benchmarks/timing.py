"""What the benchmarks share: calls timed in turns, and how near each comes to the matrix rate.

The matrix rate is what a bare product of the shape and precision of a call's own largest matrix
product reaches, in the same run, on the same threads. A call's share of it is the time that its
matrix products would take at that rate over the time that it takes: 100 % would be nothing but
products. Products are counted as torch's `flop_counter` counts them, in torch only.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lab.bench.errors import UserError, reason
from lab.bench.memory import keep_freed_memory
from lab.bench.shared import Shared
from lab.bench.takes import Takes

Name = TypeVar("Name", bound=Hashable)
LEAST = 0.02  # seconds that a call has in each turn, if it takes less


class Timed(NamedTuple):
    """What was found for a call."""

    seconds: float
    share: float
    """Of the matrix rate; 0 where there is no product."""


class Products(TorchDispatchMode):
    """Counts the operations of the matrix products within; convolutions are products too."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.largest = 0, 0
        self.shape: tuple[int, int, int] | None = None
        """(m, k, n) of the largest."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None) -> Any:
        made = function(*arguments, **(named or {}))
        if count := flop_registry.get(function.overloadpacket):
            operations = count(*arguments, **(named or {}), out_val=made)
            self.operations += operations
            if torch.is_tensor(made) and operations > self.largest:
                n = made.shape[1 if made.ndim == 4 else -1]
                self.largest, self.dtype, self.device = operations, made.dtype, made.device
                self.shape = made.numel() // n, operations // (2 * made.numel()), n
        return made

    def product(self) -> Callable[[], Any]:
        """A product (m, k) × (k, n) like the largest."""
        m, k, n = self.shape
        a, b, result = (
            torch.randn(size, dtype=self.dtype, device=self.device)
            for size in ((m, k), (k, n), (m, n))
        )
        return lambda: torch.mm(a, b, out=result)


def command_line(docstring: str, **numbers: tuple[int, str]) -> argparse.ArgumentParser:
    """A command line that tells what a benchmark does; what it does not take is one line.

    `numbers` are options that take a whole number of at least 1: the default, and what it is.
    """
    parser = argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    for name, (default, text) in numbers.items():
        text += f" (default: {default})"
        parser.add_argument(f"--{name}", type=at_least(1), default=default, help=text)
    return parser


def at_least(least: float, kind: type = int) -> Callable[[str], Any]:
    """What reads a number of at least so much from a command line."""
    takes = Takes(kind, least=least)

    def read(text: str) -> Any:
        try:
            return takes("", text)
        except UserError:
            raise argparse.ArgumentTypeError(f"takes {takes}, got {text!r}") from None

    return read


def present_device(text: str) -> str:
    """A device's name, if this machine has it."""
    try:
        return str(Shared(device=text).torch_device())
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--device ")) from None


def writable_folder(text: str) -> Path:
    """The folder that a command line names, made if it is not there."""
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"takes a folder to write to; {text}: {reason(error)}"
        ) from None
    return Path(text)


def settle() -> None:
    """One thread, and what else a script sets before it begins."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()


def clock_of(device: str) -> Callable[[], float]:
    """Seconds: this thread's own, which wait for no other process; elsewhere those that pass."""

    def when_done() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return time.thread_time if device == "cpu" else when_done


def in_turns(
    calls: dict[Name, Callable[[], Any]],
    rounds: int = 15,
    clock: Callable[[], float] = time.thread_time,
) -> dict[Name, Timed]:
    """Fastest time of each call, since another process can only make one slower, and its share.

    Args:
        calls: by name. Each is made twice before it counts.
        rounds: turns that each call has, so that what else the machine does falls on all alike.
        clock: seconds.
    """
    counts = {}
    for name, call in calls.items():
        call()
        with Products() as counts[name]:
            call()
    bare = {name: of.product() for name, of in counts.items() if of.shape}
    fastest = {(kind, name): math.inf for kind in (0, 1) for name in calls}
    for _ in range(rounds):
        for kind, each in enumerate((calls, bare)):
            for name, call in each.items():
                began = ended = clock()
                while ended < began + LEAST or ended == began:
                    last = clock()
                    call()
                    ended = clock()
                    fastest[kind, name] = min(fastest[kind, name], ended - last)
    timed = {}
    for name, of in counts.items():
        seconds = fastest[0, name]
        ideal = of.operations / of.largest * fastest[1, name] if of.shape else 0.0
        timed[name] = Timed(seconds, ideal / seconds)
    return timed


def table(title: str, timed: dict[Any, Timed], reference: Any = None) -> None:
    """Prints milliseconds, the ratio to the reference, by default the first, and the share."""
    unit = timed[next(iter(timed)) if reference is None else reference].seconds
    print(f"{title:38}{'ms':>9}{'ratio':>8}{'matrix rate':>13}")
    for name, (seconds, share) in timed.items():
        print(f"  {name:36}{1e3 * seconds:9.2f}{seconds / unit:8.2f}{share:13.0%}")
