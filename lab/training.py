"""The loop around a script's update: measurements, checkpoints, progress, interruptions."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor
from tqdm import tqdm

from lab.errors import Interrupted, TrainingError
from lab.runs import Run


def log_steps(steps: int, num_logs: int) -> list[int]:
    """Steps of measurement: 0, then log-spaced from 1 to `steps`, `num_logs` at most.

    The first few would fall on the same whole numbers, so that there are fewer when `num_logs`
    is large beside log(`steps`).
    """
    if steps == 0:
        return [0]
    spaced = numpy.geomspace(1, steps, num_logs - 1).round().astype(int)
    return sorted({0, *(int(step) for step in spaced), steps})


def train(
    run: Run,
    update: Callable[[int], Tensor],
    measure: Callable[[int], dict[str, Any]],
    state: dict[str, Any],
    stop: Callable[[dict[str, float]], bool] | None = None,
    measured: Collection[int] | None = None,
) -> None:
    """Makes the updates that are still to be made, measuring and saving on the way.

    Continues from the run's checkpoint. The measurement of a step comes before its update, so
    that row 0 describes the initial weights and the last row the final ones.

    Args:
        run: where to record; its options give `steps`, `num_logs` and `checkpoint_every`.
        update: step -> loss; makes one update of the parameters.
        measure: step -> metrics, numbers or tensors of one element; called under `no_grad`.
        state: name -> module, optimiser or generator: everything that an update changes.
        stop: row of metrics -> whether the run ends with it, before all updates are made.
        measured: steps of measurement; those of `log_steps` when None.

    Raises:
        TrainingError: when the loss is not finite; the last good checkpoint stays.
        Interrupted: after SIGINT or SIGTERM, when the checkpoint has been written.
    """
    if run.finished:
        return
    options = run.options
    if measured is None:
        measured = set(log_steps(options.steps, options.num_logs))
    run.restore(state)
    step, seconds, saved_at = run.step, run.seconds, time.monotonic()
    losses: list[Tensor] = []

    with signals() as received, _progress(run) as progress:
        while True:
            began = time.monotonic()
            done = step == options.steps
            due = time.monotonic() - saved_at >= options.checkpoint_every
            if done or due or received or step in measured:
                _check(run, losses, step)
                seconds += time.monotonic() - began  # an accelerator may still have been at work
            if step in measured and not (run.rows and run.rows[-1]["step"] == step):
                with torch.no_grad():
                    values = {key: float(value) for key, value in measure(step).items()}
                if not math.isfinite(values.get("loss", 0.0)):
                    raise _not_finite(run, values["loss"], step)
                run.record(step, values)
                progress.set_postfix(_shown(values), refresh=False)
                done = done or (stop is not None and stop(run.rows[-1]))
            if done or due or received:
                if not _finite(state):
                    raise _not_finite(run, math.nan, step)
                run.save(step, seconds, state, finished=done)
                saved_at = time.monotonic()
            if done:
                return
            if received:
                raise Interrupted(
                    f"stopped after {step} of {options.steps} updates, which are saved in "
                    f"{run.folder}; the same command without --overwrite continues",
                    received[0],
                )
            began = time.monotonic()
            losses.append(update(step).detach())
            if run.device.type == "cpu" or len(losses) == 100:
                _check(run, losses, step + 1)  # elsewhere reading a loss waits for the device
            seconds += time.monotonic() - began
            step += 1
            progress.update()


def _check(run: Run, losses: list[Tensor], step: int) -> None:
    """Raises if a loss of the updates before `step` is not finite, and forgets them."""
    if losses:
        values = torch.stack(losses).tolist()
        for back, value in enumerate(values):
            if not math.isfinite(value):
                raise _not_finite(run, value, step - len(values) + back)
        losses.clear()


def _not_finite(run: Run, value: float, step: int) -> TrainingError:
    rate = getattr(run.options, "lr", None)
    cause = f" with --lr {rate}; try a smaller one" if rate is not None else ""
    kept = (
        f"the checkpoint of step {run.step} in {run.folder} is kept"
        if (run.folder / "checkpoint.pt").exists()
        else "no checkpoint had been written yet"
    )
    return TrainingError(f"the loss is {value} at step {step}{cause} ({kept})")


def _finite(state: dict[str, Any]) -> bool:
    return all(
        bool(torch.isfinite(parameter).all())
        for part in state.values()
        if isinstance(part, torch.nn.Module)
        for parameter in part.parameters()
    )


def _shown(values: dict[str, float]) -> dict[str, str]:
    """What the progress bar shows: the loss and the accuracies on training and test data."""
    shown = ("loss", "train_accuracy", "test_accuracy")
    return {key: f"{values[key]:.3g}" for key in shown if key in values}


@contextmanager
def _progress(run: Run) -> Iterator[tqdm]:
    if run.step:
        print(f"{run.folder}: continuing after {run.step} updates", file=sys.stderr)
    with tqdm(
        total=run.options.steps,
        initial=run.step,
        desc=run.folder.name,
        unit="step",
        disable=None,  # quiet when the output is not a terminal
    ) as bar:
        yield bar


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
