"""How long runs will take, by those that have finished."""

from __future__ import annotations

import contextlib
import datetime
import functools
import heapq
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from lab.bench.errors import UserError
from lab.bench.files import read_config, read_metrics
from lab.bench.progress import duration
from lab.bench.sweeps import ROOT, Job

# Options in which a finished run may differ, closest runs first; None: in all but whole numbers,
# which are sizes.
LENGTH = {"seed", "steps", "num_logs"}
MAY_DIFFER = ({"seed"}, LENGTH, None)


class Past(NamedTuple):
    """A finished run."""

    folder: Path
    config: dict[str, Any]
    updates: int
    seconds: float
    """From its beginning to its end, or spent on updates if it was interrupted in between."""


class Estimate(NamedTuple):
    """What a run will take."""

    seconds: float
    like: list[Past]
    """The runs that it stands on."""
    other: bool
    """Whether they have other options."""


def past_runs(folder: Path) -> list[Past]:
    """The finished runs in a folder of one script's runs; those that cannot be read say nothing."""
    found = []
    for path in sorted(folder.glob("*/config.yaml")):
        with contextlib.suppress(UserError, KeyError, TypeError, ValueError):
            config, metrics = read_config(path.parent), read_metrics(path.parent)
            made_by = config["provenance"]
            ended = datetime.datetime.fromisoformat(made_by["finished"])
            seconds = made_by.get("training_seconds", 0.0)
            if "continued" not in made_by:
                began = datetime.datetime.fromisoformat(made_by["started"])
                seconds = (ended - began).total_seconds()
            config["steps"] = int(config["steps"])
            if updates := int(metrics["step"][-1]):
                found.append(Past(path.parent, config, updates, seconds))
    return found


def summary(jobs: Sequence[Job], workers: int, device: str | None = None) -> str:
    """One line: when the runs will have been made, `workers` at a time, and by which finished runs.

    Args:
        jobs: runs that are not made yet.
        workers: runs at a time.
        device: as for `estimate`.
    """
    past = functools.cache(past_runs)  # once for each script, not for each of its runs
    found = [(job, estimate(job, device, past)) for job in jobs]
    known = [each for _, each in found if each is not None]
    names = ", ".join(sorted({f"{job.script}.py" for job, each in found if each is None}))
    without = f"no run of {names} of that size has finished yet"
    if not known:
        return f"estimated time: unknown, since {without}"
    time = duration(in_parallel([each.seconds for each in known], workers))
    stands_on = {run.folder for each in known for run in each.like}
    other = ", some with other options" if any(each.other for each in known) else ""
    number = f"{len(stands_on)} finished run{'s' * (len(stands_on) > 1)}"
    text = f"estimated time: {time}, {workers} at a time, by {number}{other}"
    rest = len(jobs) - len(known)
    return text + (f"; without {rest} runs, since {without}" if rest else "")


def estimate(
    job: Job,
    device: str | None = None,
    past: Callable[[Path], list[Past]] = past_runs,
) -> Estimate | None:
    """Seconds that a run still takes, from what an update took in the runs most like it.

    Those of its own folder come before the committed ones, and those with its own options, whatever
    their seed, before others of the script. The updates that it will make are as many, as a share
    of --steps, as those runs made before they stopped.

    Args:
        job: the run.
        device: type of the device that it will run on; by default what its options say here.
        past: folder of a script's runs -> those that have finished.

    Returns:
        None if no run of the script with such sizes has finished on that type of device.
    """
    device = device or device_type(job)
    places = (Path(job.options.out_dir) / job.script, ROOT / "results" / job.script)
    wanted = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in job.options.identity().items()
    }
    for free in MAY_DIFFER:
        same = {
            key: value
            for key, value in wanted.items()
            if key not in (LENGTH if free is None else free)
            and (free is not None or type(value) is int)
        }
        for place in places:
            like = [
                run
                for run in past(place)
                if run.config["provenance"]["device"].startswith(device)
                and all(run.config.get(key) == value for key, value in same.items())
            ]
            if like:
                share = fmean(run.updates / (run.config["steps"] or run.updates) for run in like)
                updates = job.options.steps * share or fmean(run.updates for run in like)
                made = 0 if job.options.overwrite else _made(job.folder)
                left = max(updates - made, 0)
                seconds = left * fmean(run.seconds / run.updates for run in like)
                return Estimate(seconds, like, free is None)
    return None


def device_type(job: Job) -> str:
    """cpu, cuda or mps; what the options name, if this machine does not have it."""
    try:
        return job.options.torch_device().type
    except UserError:
        return job.options.device.split(":")[0]


def in_parallel(seconds: Sequence[float], workers: int) -> float:
    """Seconds until all runs have ended, each begun in its turn by the first of `workers` free."""
    free = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def _made(folder: Path) -> int:
    """Updates that a run has saved."""
    try:
        path = folder / "checkpoint.pt"
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["step"])
    except Exception:  # there is none, or the run itself will say what is wrong with it
        return 0
