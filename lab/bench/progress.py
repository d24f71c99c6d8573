"""Where a run is, and what came of it: a bar in a terminal, lines in a log, a few at the end."""

from __future__ import annotations

import datetime
import sys
import time
from typing import TYPE_CHECKING

from tqdm import tqdm

from lab.bench import levels
from lab.bench.files import first_step

if TYPE_CHECKING:
    from lab.bench.runs import Run

SHOWN = ("loss", "train_accuracy", "test_accuracy")
FIRST, LONGEST = 10.0, 60.0  # seconds until the first line of a log, and between two at most
LEVELS = (  # what passing a level is called, its column, the level
    ("memorised", "train_accuracy", levels.MEMORISED),
    ("generalised", "test_accuracy", levels.GENERALISED),
    ("grokked", "test_accuracy", levels.GROKKED),
)


class Progress:
    """What stderr shows while a run goes on; nothing with --quiet.

    A bar where stderr is a terminal; elsewhere a line now and then: after ten seconds, twice as
    late each time, and then every minute.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.steps, self.quiet = run, run.options.steps, run.options.quiet
        self.step = self.begun_at = run.step
        self.began, self.due = time.monotonic(), FIRST
        self.terminal = sys.stderr.isatty()
        if run.step and not self.quiet:
            print(f"{run.folder}: continuing after {run.step} updates", file=sys.stderr)

    def __enter__(self) -> Progress:
        self.bar = tqdm(
            total=self.steps,
            initial=self.step,
            desc=self.run.folder.name,
            unit="step",
            disable=self.quiet or not self.terminal,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def measured(self) -> None:
        """Shows the run's last measurement."""
        self.bar.set_postfix_str(_shown(self.run), refresh=False)

    def update(self) -> None:
        """Counts an update."""
        self.step += 1
        self.bar.update()
        elapsed = time.monotonic() - self.began
        if elapsed >= self.due and not (self.quiet or self.terminal):
            self.due = elapsed + min(elapsed, LONGEST)
            left = elapsed * (self.steps - self.step) / (self.step - self.begun_at)
            end = datetime.datetime.now() + datetime.timedelta(seconds=left)
            print(
                f"{self.run.folder.name}: step {self.step:,} of {self.steps:,} "
                f"({self.step / self.steps:.1%}), {_shown(self.run)}, "
                f"about {duration(left)} left, until {end:%Y-%m-%d %H:%M}",
                file=sys.stderr,
                flush=True,
            )


def _shown(run: Run) -> str:
    """The last measurement in words, `loss 0.1, train accuracy 1`."""
    row = run.rows[-1] if run.rows else {}
    return ", ".join(f"{key.replace('_', ' ')} {row[key]:.3g}" for key in SHOWN if key in row)


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 25 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def summary(run: Run) -> None:
    """What came out of a finished run, on stderr; nothing with --quiet."""
    if run.options.quiet:
        return
    m = run.metrics()
    again = "already finished, figure drawn again; " if run.was_finished else ""
    lines = [f"{again}{run.step:,} steps, {duration(run.seconds)} of training"]
    if {"train_accuracy", "test_accuracy"} <= m.keys():
        events = []
        for name, column, level in LEVELS:
            step = first_step(m, column, level)
            when = "never" if step is None else f"at step {step:,}"
            events.append(f"{name} {when} ({column.replace('_', ' ')} above {level})")
        lines += [", ".join(events), f"at the end: {_shown(run)}"]
    print("\n".join(lines), file=sys.stderr)
