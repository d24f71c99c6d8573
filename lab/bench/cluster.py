"""Runs as an array of jobs on a SLURM cluster, through submitit.

A job makes its runs by the lines that a user would type. SLURM signals a job before its time limit,
or before it takes the node away; the job then stops its run, which saves itself, and has itself
sent again. Pickles and logs of the jobs lie in `<out_dir>/.slurm`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lab.bench.errors import Interrupted, UserError
from lab.bench.loop import signals
from lab.bench.processes import CONTINUES, Process, Tally, python_path
from lab.bench.sweeps import Job

LARGEST_ARRAY = 1000  # jobs; SLURM takes 1,001 by default
MOST_LIMITS = 1000  # times that a job is sent again after its time limit
WARNING = 90  # seconds between SLURM's signal and the time limit; it may come a minute sooner
BETWEEN_LOOKS = 10.0  # seconds between two looks at the queue
SENT_BY_SLURM = (signal.SIGTERM, signal.SIGUSR2)

Run = tuple[str, ...]  # a command line without the interpreter


def check(jobs: Sequence[Job]) -> None:
    """Raises UserError if submitit or SLURM are not there, or a run could not be sent again."""
    if importlib.util.find_spec("submitit") is None:
        raise UserError("--cluster slurm takes submitit: pip install -r requirements-cluster.txt")
    if shutil.which("sbatch") is None:
        raise UserError("--cluster slurm takes a machine with SLURM's sbatch, which is not here")
    if any(job.options.overwrite for job in jobs):
        raise UserError("--overwrite does not go with --cluster: a job sent again begins anew")


class Task:
    """What a job does: makes runs one after another.

    Args:
        runs: command lines without the interpreter.
        patience: seconds for a run to save itself.
        outcomes: exit code and last words of the first of them, which have been made already.
    """

    def __init__(
        self, runs: list[list[str]], patience: float, outcomes: Sequence[tuple[int, str]] = ()
    ) -> None:
        self.runs, self.patience, self.outcomes = runs, patience, list(outcomes)
        self._process: Process | None = None
        self._told = False

    def __call__(self) -> list[tuple[int, str]]:
        """Makes the runs; returns the exit code and the last words of each."""
        # When SLURM ends a job, SIGTERM comes half a minute before SIGKILL.
        signal.signal(signal.SIGTERM, lambda number, frame: self._stop())
        while len(self.outcomes) < len(self.runs):
            if self._told:  # SLURM ends this job now, or has it sent again
                signal.pause()
                continue
            # Signals that are blocked stay so in the new process: SLURM may send them to all
            # processes of a job, but a run is told once, by us, with another.
            signal.pthread_sigmask(signal.SIG_BLOCK, SENT_BY_SLURM)
            process = self._process = Process(self.runs[len(self.outcomes) :], apart=False)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT_BY_SLURM)
            while not process.over:
                time.sleep(0.2)
                for code, words in process.ended():
                    if not (code and self._told):
                        print(code, words, *self.runs[len(self.outcomes)], file=sys.stderr)
                        self.outcomes.append((code, words))
        return self.outcomes

    def checkpoint(self) -> Any:
        """What submitit calls before the time limit: the same runs, to be sent again."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        end = time.monotonic() + self.patience
        while self._process is not None and time.monotonic() < end:
            try:
                # Not through Popen, in a method of which the signal may have come.
                flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
                if os.waitid(os.P_PID, self._process.process.pid, flags) is not None:
                    break
            except ChildProcessError:  # it had ended before
                break
            time.sleep(0.1)
        return DelayedSubmission(Task(self.runs, self.patience, self.outcomes))

    def _stop(self) -> None:
        self._told = True
        if self._process is not None:
            self._process.stop(signal.SIGINT)


def run_all(
    jobs: Sequence[Job],
    made: int,
    runs_per_process: int,
    partition: str | None,
    minutes: int,
    gpus: int,
    parallel: int,
) -> list[str]:
    """Sends runs to SLURM, and waits for them.

    Runs that an earlier call has sent, and that are in the queue still, are waited for too, not
    sent twice. Ctrl-C and SIGTERM cancel the jobs, which save their runs before they end. If this
    process is killed outright, the jobs go on.

    Args:
        jobs: the runs to make.
        made: runs of the same sweep that are there already, for the count.
        runs_per_process: runs that a job makes one after another.
        partition: of the cluster; its default one when None.
        minutes, gpus: time limit and GPUs of a job.
        parallel: most jobs at a time.

    Returns:
        one line for each run that failed: its folder and its last words.

    Raises:
        UserError: if SLURM does not take the jobs.
        Interrupted: after SIGINT or SIGTERM, when all runs have stopped.
    """
    if not jobs:
        return []
    missing = {tuple(job.words()): job for job in jobs}
    folder = Path(jobs[0].options.out_dir) / ".slurm"
    with signals() as received, Tally(made + len(jobs), made) as tally:
        sent = {job: runs for job, runs in _in_queue(folder).items() if missing.keys() & runs}
        known = {run for runs in sent.values() for run in runs}
        left = [run for run in missing if run not in known]
        parts = [left[i : i + runs_per_process] for i in range(0, len(left), runs_per_process)]
        what = f"{len(parts)} jobs to SLURM, where {len(sent)} of this sweep are already"
        print(f"sending {what}; logs: {folder}", file=sys.stderr, flush=True)
        sent |= _submit(parts, folder, partition, minutes, gpus, parallel)
        looked, absent = time.monotonic(), set[Any]()
        while sent and not received:
            time.sleep(1)
            tally.refresh()
            files = {path.name for path in folder.iterdir()}
            over = {job for job in sent if job.paths.result_pickle.name in files}
            if time.monotonic() - looked > BETWEEN_LOOKS and (queue := _queue()) is not None:
                out = {job for job in sent if job.job_id not in queue}
                over |= out & absent  # twice, since a shared disk may show a result late
                looked, absent = time.monotonic(), out
            for job in over:
                for run, outcome in _outcomes(job, sent.pop(job), missing).items():
                    tally.add(missing[run], *outcome)
        if received:
            _cancel(sent)
            raise Interrupted(f"stopped; {CONTINUES}", received[0])
    return tally.failed


def _submit(
    parts: list[list[Run]],
    folder: Path,
    partition: str | None,
    minutes: int,
    gpus: int,
    parallel: int,
) -> dict[Any, list[Run]]:
    """Sends a job for each part; gives submitit's jobs and their runs."""
    from submitit import AutoExecutor
    from submitit.core.utils import FailedJobError

    warning = min(WARNING, 15 * minutes)
    executor = AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=MOST_LIMITS)
    executor.update_parameters(
        name="sweep",
        timeout_min=minutes,
        cpus_per_task=1,
        slurm_array_parallelism=parallel,
        slurm_signal_delay_s=warning,
        slurm_setup=[f"export PYTHONPATH={shlex.quote(python_path())}"],
        **({"slurm_partition": partition} if partition else {}),
        **({"gpus_per_node": gpus} if gpus else {}),
    )
    sent: dict[Any, list[Run]] = {}
    for start in range(0, len(parts), LARGEST_ARRAY):
        some = parts[start : start + LARGEST_ARRAY]
        try:
            tasks = [Task([list(run) for run in runs], 0.8 * warning) for runs in some]
            with contextlib.redirect_stderr(io.StringIO()):  # where submitit puts sbatch's words
                jobs = executor.submit_array(tasks)
        except FailedJobError as error:
            why = str(error).strip().splitlines()[-1].removeprefix("sbatch: error: ")
            raise UserError(f"--cluster slurm: {why}") from None
        sent |= zip(jobs, some, strict=True)
    return sent


def _in_queue(folder: Path) -> dict[Any, list[Run]]:
    """Jobs that an earlier call has sent and that have not ended, and their runs."""
    from submitit import SlurmJob

    jobs = [SlurmJob(folder, name) for name in sorted(_queue() or ())]
    return {
        job: [tuple(run) for run in job.submission().function.runs]
        for job in jobs
        if job.paths.submitted_pickle.exists()
    }


def _queue() -> set[str] | None:
    """Ids of the user's jobs that have not ended; None when SLURM does not answer."""
    answer = subprocess.run(
        ["squeue", "--me", "--array", "--noheader", "--format=%i"], capture_output=True, text=True
    )
    return None if answer.returncode else set(answer.stdout.split())


def _outcomes(job: Any, runs: list[Run], missing: dict[Run, Job]) -> dict[Run, tuple[int, str]]:
    """Exit code and last words of those runs of an ended job that were missing."""
    outcomes = []
    if job.paths.result_pickle.exists():
        with contextlib.suppress(Exception):  # of the job itself, which its log tells
            outcomes = job.result()
    found = dict(zip(runs, outcomes, strict=False))
    log = (job.stderr() or "").splitlines()
    lines = [line for line in log if line.strip() and not line.startswith(("srun:", "submitit "))]
    lost = (1, lines[-1] if lines else f"SLURM ended job {job.job_id}")
    return {
        run: found.get(run) or ((0, "") if missing[run].made else lost)
        for run in runs
        if run in missing
    }


def _cancel(jobs: Iterable[Any]) -> None:
    """Cancels jobs, and waits until they have saved their runs and ended."""
    names = {job.job_id for job in jobs}
    subprocess.run(["scancel", *names], check=False)
    while (queue := _queue()) is None or queue & names:
        time.sleep(1)
