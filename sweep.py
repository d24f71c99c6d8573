"""Many runs of one script, or of a grid in a file: on all cores, on GPUs, or on a SLURM cluster.

    python sweep.py xor_grokking.py --jr 0 1.0 --seed 0:3     # all combinations: six runs
    python sweep.py configs/table_1.yaml                      # a grid, or a list of grids
    python sweep.py configs/table_1.yaml --dry_run            # what it would make, and how long
    python sweep.py configs/table_1.yaml --seed 0 --out_dir elsewhere
    python sweep.py configs/table_1.yaml --cluster slurm --partition cpu --time 120

Each run is what `python <script> <its options>` makes, in its own folder, one thread each. What is
finished is not made again, what was interrupted goes on. In a file, `script` names the script,
every other key is one of its options with a value, a list, or a range such as `0:10` (0 to 9), and
`cells` lists options that belong together. Options on the command line choose the cells that list
their values, or replace what the file says.
"""

import argparse
import dataclasses
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.bench import Shared, cluster, estimates, option, processes, script
from lab.bench.errors import TrainingError, UserError
from lab.bench.options import LETTERS
from lab.bench.sweeps import ROOT, Job, each_once, grids_of, jobs_of, options_in, size_of
from lab.bench.takes import Takes

MOST = 10_000  # runs without --yes, and at a time


@dataclass
class Options:
    """How the runs are made."""

    dry_run: bool = option(False, "print the commands and the time they would take, run nothing")
    workers: int | None = option(
        None,
        "runs at a time, one thread each; by default all cores, or what the GPUs take",
        least=1,
        most=MOST,
    )
    per_device: int = option(
        1, "runs at a time on each GPU; they overlap if NVIDIA's MPS runs there "
        "(nvidia-cuda-mps-control -d), else they take turns", least=1,
    )  # fmt: skip
    runs_per_process: int = option(
        1, "runs that a process, or a job of the cluster, makes one after another, so that "
        "start-up does not dominate short ones", least=1,
    )  # fmt: skip
    yes: bool = option(False, "allow a sweep of more than 10,000 runs")
    cluster: str | None = option(
        None, "send the runs there as an array of jobs, instead of making them here",
        choices=("slurm",),
    )  # fmt: skip
    partition: str | None = option(None, "partition of the cluster; by default its own default")
    time: int = option(
        60, "minutes of a job; what takes longer is saved, sent again and goes on", least=1
    )
    gpus: int = option(0, "GPUs of a job", least=0)
    array_parallelism: int = option(256, "jobs of the array at a time", least=1)


ON_A_CLUSTER = ("partition", "time", "gpus", "array_parallelism")
ON_THIS_MACHINE = ("workers", "per_device")


def jobs_in(grids: list[dict[str, Any]], typed: dict[str, Any], most: int = MOST) -> list[Job]:
    """All runs of the grids, with the options of the command line in the place of theirs.

    Raises:
        UserError: for a grid that cannot be made, has one name for two runs, or more than `most`.
    """
    parts = []
    for grid in grids:
        name = Path(grid["script"]).stem
        if not (ROOT / f"{name}.py").is_file():
            raise UserError(f"there is no script {grid['script']}")
        options = getattr(importlib.import_module(name), "Options", object)
        if not issubclass(options, Shared):
            raise UserError(f"{name}.py makes no runs")
        parts.append((name, options, {k: v for k, v in grid.items() if k != "script"}, typed))
    if (size := sum(size_of(*part) for part in parts)) > most:
        raise UserError(f"this would make {size:,} runs, more than {most:,}; --yes allows it")
    return each_once(job for part in parts for job in jobs_of(*part))


def parse(argv: list[str] | None) -> tuple[str, Options, list[str]]:
    """The grid, how to make it, and the words that are left, for the script."""
    parser = argparse.ArgumentParser(
        prog="sweep.py",
        usage="python sweep.py SCRIPT_OR_FILE [--option VALUE …]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = lambda message: parser.exit(2, f"sweep.py: error: {message}\n")  # type: ignore[method-assign]
    parser.add_argument("grid", help="a script, or a YAML file of grids")
    takes = Takes.of(Options)
    for f in dataclasses.fields(Options):
        text, kind = f.metadata["help"], takes[f.name].kind
        if kind is bool:
            parser.add_argument(f"--{f.name}", action="store_true", help=text)
        else:
            text += "" if f.default is None else f" (default: {f.default})"
            parser.add_argument(f"--{f.name}", metavar=LETTERS[kind], default=f.default, help=text)
    given, words = parser.parse_known_args(argv)
    o = Options(**{name: take(name, getattr(given, name)) for name, take in takes.items()})
    for name in ON_THIS_MACHINE if o.cluster else ON_A_CLUSTER:
        if getattr(o, name) != getattr(Options, name):
            without = "does not go with --cluster" if o.cluster else "goes with --cluster slurm"
            raise UserError(f"--{name} {without}")
    return given.grid, o, words


@script
def main(argv: list[str] | None = None) -> None:
    grid, o, words = parse(argv)
    jobs = jobs_in(grids_of(grid), options_in(words), sys.maxsize if o.yes else MOST)
    left = [job for job in jobs if not job.made]
    made = len(jobs) - len(left)
    if o.cluster:
        cluster.check(left)
        time = estimates.summary(left, o.array_parallelism, "cuda" if o.gpus else "cpu")
    else:
        places = processes.places(left, o.workers, o.per_device)
        time = estimates.summary(left, len(places))
    if o.dry_run:
        for job in jobs:
            print(job.line())
        print(f"{len(jobs)} runs, {made} of them finished", *([time] if left else []), sep="\n")
        return
    if left:
        print(time, file=sys.stderr)
    if o.cluster:
        failed = cluster.run_all(
            left, made, o.runs_per_process, o.partition, o.time, o.gpus, o.array_parallelism
        )
    else:
        failed = processes.run_all(left, made, places, o.runs_per_process)
    if failed:
        print(*failed, sep="\n", file=sys.stderr)
        raise TrainingError(f"{len(failed)} of {len(jobs)} runs failed")
    for job in jobs:
        print(job.folder)


if __name__ == "__main__":
    raise SystemExit(main())
