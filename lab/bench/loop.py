"""The training loop's iterator: measurements, checkpoints, progress and interruptions behind it."""

from __future__ import annotations

import math
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch

from lab.bench.captured import Graphs, Variant
from lab.bench.errors import Interrupted, TrainingError
from lab.bench.progress import Progress
from lab.bench.runs import Run

MOST_LOGS = 1_000_000  # of which a computer can keep track


def log_steps(steps: int, num_logs: int) -> list[int]:
    """Steps of measurement: 0, then log-spaced from 1 to `steps`, `num_logs` at most.

    The first few would fall on the same whole numbers, so that there are fewer when `num_logs`
    is large beside log(`steps`).
    """
    if steps == 0:
        return [0]
    spaced = numpy.geomspace(1, steps, min(num_logs, MOST_LOGS) - 1).round().astype(int)
    between = spaced[int(num_logs == 2) :]  # of two there is none between
    return sorted({0, *(int(step) for step in between), steps})


def training(
    run: Run,
    measure: Callable[[int], dict[str, Any]],
    *,
    stop: Callable[[dict[str, float]], bool] = lambda row: False,
    measured: Collection[int] | None = None,
    variant: Variant | None = lambda step: None,
    **state: Any,
) -> Iterator[int]:
    """The steps whose updates are still to be made; measures and saves between them.

        for step in training(run, measure, network=network, optimiser=optimiser):
            …  # one update

    Continues from the run's checkpoint; of a finished run it restores the state, and that is all.
    The measurement of a step comes before its update, so that row 0 describes the initial weights
    and the last row the final ones. The run's `batches` and `generator`s are at the step that is
    given out. On CUDA a few steps are given out, and the other updates made by replaying what was
    done for them as a CUDA graph, so that an update may not depend on `step` but by its `variant`.

    Args:
        run: where to record; its options give `steps`, `num_logs` and `checkpoint_every`.
        measure: step -> metrics, numbers or tensors of one element; called under `no_grad`.
        stop: row of metrics -> whether the run ends with it, before all updates are made.
        measured: steps of measurement; those of `log_steps` when None.
        variant: step -> what the update's code depends on, say whether it begins an epoch; None for
            updates that wait for the device, of which CUDA captures none.
        state: modules, optimisers and whatever else an update changes, by name.

    Raises:
        TrainingError: when the loss or a weight is not finite; the last good checkpoint stays.
        Interrupted: after SIGINT or SIGTERM, when the checkpoint has been written.
    """
    run.restore(state)
    if run.finished:
        return
    o = run.options
    measured = set(log_steps(o.steps, o.num_logs) if measured is None else measured)
    # The smallest trained tensor, which a loss that is not finite spoils at once.
    watched = sorted((p for p in _parameters(state) if p.requires_grad), key=torch.Tensor.numel)[:1]
    graphs = Graphs(run, state, variant)
    step, saved_at = run.step, time.monotonic()
    # On a CPU this thread's own time, which other work on the machine hardly changes; elsewhere
    # the time that passes, since an accelerator works on its own.
    clock = time.thread_time if run.device.type == "cpu" else time.monotonic
    with signals() as received, Progress(run) as progress:
        while True:
            done, due = step == o.steps, time.monotonic() - saved_at >= o.checkpoint_every
            if run.device.type == "cuda" and (done or due or received or step in measured):
                began = clock()  # of what the updates have left to do there
                torch.cuda.synchronize(run.device)
                run.seconds += clock() - began
            if step in measured and not (run.rows and run.rows[-1]["step"] == step):
                try:
                    with torch.no_grad():
                        row = {key: float(value) for key, value in measure(step).items()}
                except (ValueError, torch.linalg.LinAlgError) as error:
                    if not re.search("not finite|failed to converge", str(error)):
                        raise
                    raise _not_finite(run, f"at step {step}, {error}") from None
                if not math.isfinite(row.get("loss", 0.0)):
                    raise _not_finite(run, f"the loss is {row['loss']} at step {step}")
                run.record(step, row)
                progress.measured()
                done = done or stop(run.rows[-1])
            if done or due or received:
                if not _finite(_parameters(state)):
                    raise _not_finite(run, f"a weight is not finite at step {step}")
                run.save(step, run.seconds, state, finished=done)
                saved_at = time.monotonic()
            if done:
                return
            if received:
                raise Interrupted(
                    f"stopped after {step} of {o.steps} updates, which are saved in {run.folder}; "
                    "the same command without --overwrite continues",
                    received[0],
                )
            began = clock()
            for each in run.draws:
                each.at(step)
            if not graphs.replay(step):
                with graphs.update(step):
                    yield step
            # Elsewhere than on a CPU, reading a number waits for the device.
            if (run.device.type == "cpu" or step % 100 == 99) and not _finite(watched):
                raise _not_finite(run, f"a weight is not finite after the update of step {step}")
            run.seconds += clock() - began
            step += 1
            progress.update()


def _parameters(state: dict[str, Any]) -> list[torch.Tensor]:
    modules = [part for part in state.values() if isinstance(part, torch.nn.Module)]
    return [parameter for module in modules for parameter in module.parameters()]


def _finite(tensors: list[torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _not_finite(run: Run, what: str) -> TrainingError:
    rate = getattr(run.options, "lr", None)
    cause = f" with --lr {rate}; try a smaller one" if rate is not None else ""
    kept = (
        f"the checkpoint of step {run.step} in {run.folder} is kept"
        if (run.folder / "checkpoint.pt").exists()
        else "no checkpoint had been written yet"
    )
    return TrainingError(f"{what}{cause} ({kept})")


def above(column: str, level: float | None) -> Callable[[dict[str, float]], bool]:
    """For `stop`: whether a metric is above a level; never where that is None."""
    return lambda row: level is not None and row[column] > level


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that an update is never cut in two; a second one ends all."""
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
