"""The loop around a script's update: measurements, checkpoints, progress, interruptions."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
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
    train_together([run], update, [measure], [state], stop, measured)


def train_together(
    runs: Sequence[Run],
    update: Callable[[int], Tensor],
    measures: Sequence[Callable[[int], dict[str, Any]]],
    states: Sequence[dict[str, Any]],
    stop: Callable[[dict[str, float]], bool] | None = None,
    measured: Collection[int] | None = None,
) -> None:
    """`train` for several runs whose updates are made in one pass, each with its own folder.

    Args:
        runs: at the same step, with the same `steps`, `num_logs` and `checkpoint_every`.
        update: step -> losses (R,), or a scalar for one run; makes an update of every network. A
            run that has stopped is not recorded any more, whatever becomes of its network. The
            seconds that a run keeps are those of all.
        measures: one for each run.
        states: one for each run.
        stop, measured: as for `train`.

    Raises:
        ValueError: if the runs are not at the same step.
        TrainingError, Interrupted: as for `train`; one loss that is not finite ends all.
    """
    if len({run.step for run in runs}) != 1:
        raise ValueError("runs that are trained together must be at the same step")
    going = [part for part in zip(runs, measures, states, strict=True) if not part[0].finished]
    if not going:
        return
    first = runs[0]
    options = first.options
    if measured is None:
        measured = set(log_steps(options.steps, options.num_logs))
    for run, _, state in going:
        run.restore(state)
    step, seconds, saved_at = first.step, first.seconds, time.monotonic()
    # On a CPU this thread's own time, which other work on the machine hardly changes; elsewhere
    # the time that passes, since an accelerator works on its own.
    clock = time.thread_time if first.device.type == "cpu" else time.monotonic
    losses: list[Tensor] = []

    with signals() as received, _progress(runs) as progress:
        while True:
            began = clock()
            done = step == options.steps
            due = time.monotonic() - saved_at >= options.checkpoint_every
            if done or due or received or step in measured:
                _check(runs, losses, step)
                seconds += clock() - began  # an accelerator may still have been at work
            stopped = []
            for run, measure, _ in going if step in measured else []:
                if run.rows and run.rows[-1]["step"] == step:
                    continue
                with torch.no_grad():
                    values = {key: float(value) for key, value in measure(step).items()}
                if not math.isfinite(values.get("loss", 0.0)):
                    raise _not_finite(run, values["loss"], step)
                run.record(step, values)
                progress.set_postfix(_shown(values), refresh=False)
                if stop is not None and stop(run.rows[-1]):
                    stopped.append(run)
            done = done or len(stopped) == len(going)
            for run, _, state in going:
                if done or due or received or run in stopped:
                    if not _finite(state):
                        raise _not_finite(run, math.nan, step)
                    run.save(step, seconds, state, finished=done or run in stopped)
            if due:
                saved_at = time.monotonic()
            if done:
                return
            going = [part for part in going if part[0] not in stopped]
            if received:
                raise Interrupted(
                    f"stopped after {step} of {options.steps} updates, which are saved in "
                    f"{going[0][0].folder}{f' and {len(going) - 1} more' * (len(going) > 1)}; the "
                    "same command without --overwrite continues",
                    received[0],
                )
            began = clock()
            losses.append(update(step).detach())
            if first.device.type == "cpu" or len(losses) == 100:
                _check(runs, losses, step + 1)  # elsewhere reading a loss waits for the device
            seconds += clock() - began
            step += 1
            progress.update()


def _check(runs: Sequence[Run], losses: list[Tensor], step: int) -> None:
    """Raises if a loss of the updates before `step` is not finite, and forgets them."""
    if losses:
        values = torch.stack(losses).view(len(losses), -1).tolist()
        for back, of_runs in enumerate(values):
            for run, value in zip(runs, of_runs, strict=True):
                if not math.isfinite(value) and not run.finished:
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
def _progress(runs: Sequence[Run]) -> Iterator[tqdm]:
    for run in runs:
        if run.step:
            print(f"{run.folder}: continuing after {run.step} updates", file=sys.stderr)
    with tqdm(
        total=runs[0].options.steps,
        initial=runs[0].step,
        desc=runs[0].folder.name + f" and {len(runs) - 1} more" * (len(runs) > 1),
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
