"""Many runs: the cells of a grid, and a process for each, one thread in each."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from lab.bench.errors import Interrupted, UserError
from lab.bench.files import is_finished
from lab.bench.loop import signals
from lab.bench.options import Takes
from lab.bench.shared import Shared

ROOT = Path(__file__).resolve().parents[2]


class Job(NamedTuple):
    """One run of a script."""

    script: str
    """Its name, without `.py`."""
    options: Shared

    @property
    def folder(self) -> Path:
        """Where the run lies, whether it is there or not."""
        return Path(self.options.out_dir) / self.script / self.options.run_name()

    def words(self) -> list[str]:
        """What a user would type for this run, without the interpreter."""
        words = [f"{self.script}.py"]
        for f in dataclasses.fields(self.options):
            value = getattr(self.options, f.name)
            if value is True:
                words.append(f"--{f.name}")
            elif value != f.default:
                words += [f"--{f.name}", *map(str, value if isinstance(value, tuple) else [value])]
        return words


def jobs_of(script: str, options_class: type[Shared], grid: dict[str, Any]) -> list[Job]:
    """The runs of a grid: all combinations of its lists, for each of its cells.

    Args:
        script: the script's name.
        options_class: the script's options.
        grid: option -> value, list of values, or range "0:10" (from 0 to 9); and under `cells` a
            list of further options, each of which is combined with all of these.

    Raises:
        UserError: for an option that the script does not know or a value that it does not take,
            an empty range, or a run that is given twice.
    """
    takes = Takes.of(options_class)
    jobs = []
    for cell in grid.get("cells", [{}]):
        lists = {k: _values(k, v) for k, v in {**grid, **cell}.items() if k != "cells"}
        for name in lists:
            if name not in takes:
                raise UserError(f"{script}.py has no option --{name}; its --help lists them")
        for values in itertools.product(*lists.values()):
            chosen = {k: takes[k](k, v) for k, v in zip(lists, values, strict=True)}
            jobs.append(Job(script, options_class(**chosen)))
    folders = [job.folder for job in jobs]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise UserError(f"the grid holds {twice.name} twice")
    return jobs


def _values(name: str, given: Any) -> list[Any]:
    """A list as it is, a range "2:5" as 2, 3, 4, and one value as a list of it."""
    found = []
    for value in given if isinstance(given, list) else [given]:
        if isinstance(value, str) and (match := re.fullmatch(r"(-?\d+):(-?\d+)", value)):
            numbers = list(range(int(match[1]), int(match[2])))
            if not numbers:
                raise UserError(f"--{name} takes a range that is not empty, got {value}")
            found += numbers
        else:
            found.append(value)
    if not found:
        raise UserError(f"--{name} takes at least one value")
    return found


def run_all(jobs: Sequence[Job], workers: int) -> list[str]:
    """Makes the runs that are not finished, each by the line that a user would type for it.

    A progress bar counts finished runs. Ctrl-C and SIGTERM are passed on: every run saves where it
    is and the same call continues. If this process is killed outright, its runs go on to their end.

    Args:
        jobs: the runs.
        workers: most processes at a time.

    Returns:
        one line for each run that failed: its folder and its last words.

    Raises:
        Interrupted: after SIGINT or SIGTERM, when all runs have stopped.
    """
    waiting = deque(job for job in jobs if job.options.overwrite or not is_finished(job.folder))
    running: list[tuple[Job, subprocess.Popen, IO[bytes]]] = []
    failed, told = [], False
    counted = {"total": len(jobs), "initial": len(jobs) - len(waiting), "unit": "run"}
    with signals() as received, tqdm(**counted, desc="sweep", disable=None) as bar:
        while running or (waiting and not received):
            while waiting and len(running) < workers and not received:
                job, words = waiting.popleft(), tempfile.TemporaryFile()  # noqa: SIM115
                name, *flags = job.words()
                process = subprocess.Popen(
                    [sys.executable, str(ROOT / name), *flags],
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.DEVNULL,
                    stderr=words,
                    start_new_session=True,  # so that Ctrl-C comes once, from here
                )
                running.append((job, process, words))
            if received and not told:
                told = True
                for _, process, _ in running:
                    process.send_signal(received[0])
            time.sleep(0.05)
            for each in [each for each in running if each[1].poll() is not None]:
                running.remove(each)
                job, process, words = each
                if process.returncode == 0:
                    bar.update()
                elif not received:
                    words.seek(0)
                    lines = words.read().decode(errors="replace").strip().splitlines() or ["killed"]
                    failed.append(f"{job.folder}: {lines[-1]}")
                words.close()
    if received:
        raise Interrupted(
            "stopped; every run is saved, and the same command without --overwrite continues",
            received[0],
        )
    return failed
