"""Runs in processes of this machine, one thread each: on all cores, or on its GPUs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from tqdm import tqdm

from lab.bench.errors import Interrupted
from lab.bench.loop import signals
from lab.bench.progress import duration
from lab.bench.sweeps import ROOT, Job

CONTINUES = "every run is saved, and the same command without --overwrite continues"


class Process:
    """A process that makes runs, one after another.

    A single run is the very line that a user would type; several go through `lab.bench.worker`.

    Args:
        runs: command lines without the interpreter, as `Job.words` has them.
        devices: what CUDA_VISIBLE_DEVICES becomes; None to leave it.
        apart: whether signals from a terminal, or to the whole job of a cluster, pass it by.
    """

    def __init__(
        self, runs: Sequence[list[str]], devices: str | None = None, apart: bool = True
    ) -> None:
        self.left = len(runs)
        self._shared = len(runs) > 1
        self._read = 0
        self._answers = tempfile.TemporaryFile()  # noqa: SIM115
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        if devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = devices
        with tempfile.TemporaryFile() as lines:
            if self._shared:
                environment["PYTHONPATH"] = python_path()
                lines.write(json.dumps(list(runs)).encode())
                lines.seek(0)
                line = ["-m", "lab.bench.worker"]
            else:
                line = [str(ROOT / runs[0][0]), *runs[0][1:]]
            self.process = subprocess.Popen(
                [sys.executable, *line],
                env=environment,
                stdin=lines,
                stdout=self._answers,
                stderr=self._errors,
                start_new_session=apart,
            )

    def ended(self) -> Iterator[tuple[int, str]]:
        """Exit code and last words of the runs that have ended since the last call, in order.

        When the process has died in the middle of a run, that run has ended too, and `left` counts
        those that it had not begun.
        """
        code = self.process.poll()  # before its answers are read, so that none is missed
        if self._shared:
            text = os.pread(self._answers.fileno(), 1 << 24, self._read)
            text = text[: text.rfind(b"\n") + 1]
            self._read += len(text)
            for answer in text.splitlines():
                self.left -= 1
                yield tuple(json.loads(answer))
        # A worker that ends with 128 or more has told of the run that a signal stopped.
        if code is not None and self.left and (not self._shared or code < 128):
            self.left -= 1
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            yield code, (lines or ["killed" if code < 0 else ""])[-1]

    @property
    def over(self) -> bool:
        """Whether the process has ended, and `ended` has told of all its runs."""
        return self.process.returncode is not None

    def stop(self, number: int) -> None:
        """Sends a signal, at which a run saves and ends."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


class Tally:
    """A bar over runs with an estimate of the end; without a terminal a line as each run ends.

    Args:
        total: runs.
        made: of these, when it begins.
    """

    def __init__(self, total: int, made: int) -> None:
        self.failed: list[str] = []
        self._total, self._made, self._first = total, made, made
        self._began = time.monotonic()
        # No smoothing: the mean speed so far, since runs end in bursts.
        self._bar = tqdm(
            total=total, initial=made, desc="sweep", unit="run", smoothing=0, disable=None
        )

    def __enter__(self) -> Tally:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, job: Job, code: int, words: str) -> None:
        """Counts a run that has ended, with its exit code and its last words."""
        self._made += 1
        if code:
            self.failed.append(f"{job.folder}: {words or f'exit code {code}'}")
            self._bar.set_postfix(failed=len(self.failed), refresh=False)
        self._bar.update()
        if self._bar.disable:
            passed = time.monotonic() - self._began
            left = passed / (self._made - self._first) * (self._total - self._made)
            what = f"failed, {self.failed[-1]}" if code else job.folder
            end = f", about {duration(left)} left" if left else ""
            print(f"{self._made} of {self._total} runs{end}: {what}", file=sys.stderr, flush=True)

    def refresh(self) -> None:
        """Moves the clock of the bar, about once a second."""
        if not self._bar.disable and time.time() - self._bar.last_print_t > 1:
            self._bar.refresh()
            self._bar.last_print_t = time.time()


def places(jobs: Sequence[Job], workers: int | None, per_device: int) -> list[str | None]:
    """Where processes may run at a time: CUDA_VISIBLE_DEVICES of each, None to leave it as it is.

    Args:
        jobs: the runs.
        workers: most places; by default all cores, or what the GPUs take.
        per_device: processes on one GPU.

    Raises:
        UserError: if a run asks for a device that this machine does not have.
    """
    options = {(job.options.device, job.options.dtype): job.options for job in jobs}
    devices = {each.torch_device() for each in options.values()}
    gpus = {device for device in devices if device.type != "cpu"}
    if not gpus:
        found: list[str | None] = [None] * (workers or cores())
    elif gpus == {torch.device("cuda")}:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
        found = [*names] * per_device
    else:  # named by the runs themselves
        found = [None] * (len(gpus) * per_device)
    return found[:workers]


def cores() -> int:
    """Cores of this process, or of the machine before Python 3.13."""
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1


def python_path() -> str:
    """PYTHONPATH with the root, so that a process elsewhere finds `lab`."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def batch(waiting: deque[Job], most: int, workers: int) -> deque[Job]:
    """Takes the runs of the next process: `most`, but no more than leaves work for the others."""
    return deque(waiting.popleft() for _ in range(min(most, -(-len(waiting) // workers))))


def run_all(
    jobs: Sequence[Job], made: int, places: Sequence[str | None], runs_per_process: int = 1
) -> list[str]:
    """Makes runs, each by the line that a user would type for it.

    Ctrl-C and SIGTERM are passed on: every run saves where it is and the same call continues. If
    this process is killed outright, its runs go on to their end.

    Args:
        jobs: the runs to make.
        made: runs of the same sweep that are there already, for the count.
        places: of the processes at a time; see `places`.
        runs_per_process: runs that a process makes one after another.

    Returns:
        one line for each run that failed: its folder and its last words.

    Raises:
        Interrupted: after SIGINT or SIGTERM, when all runs have stopped.
    """
    waiting = deque(jobs)
    free = deque(places)
    running: list[tuple[Process, deque[Job], str | None]] = []
    told = False
    with signals() as received, Tally(made + len(jobs), made) as tally:
        while running or (waiting and not received):
            while waiting and free and not received:
                mine, place = batch(waiting, runs_per_process, len(places)), free.popleft()
                running.append((Process([job.words() for job in mine], place), mine, place))
            if received and not told:
                told = True
                for process, _, _ in running:
                    process.stop(received[0])
            time.sleep(0.05)
            tally.refresh()
            for each in list(running):
                process, mine, place = each
                for code, words in process.ended():
                    job = mine.popleft()
                    if not (code and received):
                        tally.add(job, code, words)
                if process.over:
                    running.remove(each)
                    free.append(place)
                    waiting.extendleft(reversed(mine))  # not begun by a process that died
    if received:
        raise Interrupted(f"stopped; {CONTINUES}", received[0])
    return tally.failed
