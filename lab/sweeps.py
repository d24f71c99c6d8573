"""Many runs of one script at once: a process for each, one thread in each."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tqdm import tqdm

from lab.errors import Interrupted
from lab.options import Shared, fields
from lab.runs import read_config
from lab.training import signals


def folder_of(script: str, options: Shared) -> Path:
    """Where a run of these options lies, whether it is there or not."""
    return Path(options.out_dir) / script / options.run_name()


def finished(script: str, options: Shared) -> bool:
    """Whether a run of these options is there and has ended; raises UserError if it is damaged."""
    config = folder_of(script, options) / "config.yaml"
    return config.exists() and "finished" in read_config(config)["provenance"]


def command(script: str, options: Shared) -> list[str]:
    """What a user would type for this run, without the interpreter."""
    words = [f"{script}.py"]
    for f in fields(options):
        value = getattr(options, f.name)
        if value is True:
            words.append(f"--{f.name}")
        elif value != f.default:
            words.append(f"--{f.name}={value}")
    return words


def run_all(script: str, runs: Sequence[Shared], workers: int) -> list[str]:
    """Makes the runs that are not finished, each by the command that a user would type for it.

    A progress bar counts finished runs. Ctrl-C and SIGTERM are passed on: every run saves where it
    is and the same call continues. If this process is killed outright, its runs go on to their end.

    Args:
        script: name of the script, a file in the folder above `lab/`.
        runs: their options.
        workers: most processes at a time.

    Returns:
        one line for each run that failed: its folder and its last words.

    Raises:
        Interrupted: after SIGINT or SIGTERM, when all runs have stopped.
    """
    root = Path(__file__).resolve().parent.parent
    waiting = deque(o for o in runs if o.overwrite or not finished(script, o))
    running: list[tuple[Shared, subprocess.Popen, IO[bytes]]] = []
    failed = []
    with (
        signals() as received,
        tqdm(
            total=len(runs), initial=len(runs) - len(waiting), desc=script, unit="run", disable=None
        ) as bar,
    ):
        told = False
        while running or (waiting and not received):
            while waiting and len(running) < workers and not received:
                o, words = waiting.popleft(), tempfile.TemporaryFile()  # noqa: SIM115
                name, *flags = command(script, o)
                process = subprocess.Popen(
                    [sys.executable, str(root / name), *flags],
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.DEVNULL,
                    stderr=words,
                    start_new_session=True,  # so that Ctrl-C comes once, from here
                )
                running.append((o, process, words))
            if received and not told:
                told = True
                for _, process, _ in running:
                    process.send_signal(received[0])
            time.sleep(0.05)
            for each in [each for each in running if each[1].poll() is not None]:
                running.remove(each)
                o, process, words = each
                if process.returncode == 0:
                    bar.update()
                elif not received:
                    words.seek(0)
                    lines = words.read().decode(errors="replace").strip().splitlines() or ["killed"]
                    failed.append(f"{folder_of(script, o)}: {lines[-1]}")
                words.close()
    if received:
        raise Interrupted(
            "stopped; every run is saved, and the same command without --overwrite continues",
            received[0],
        )
    return failed
