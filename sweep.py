"""Many runs of one script, or of a grid in a file, on all cores.

    python sweep.py xor_grokking.py --jr 0 1.0 --seed 0:3     # all combinations: six runs
    python sweep.py configs/table_1.yaml                      # a grid, or a list of grids
    python sweep.py configs/table_1.yaml --dry_run            # what it would make
    python sweep.py configs/table_1.yaml --seed 0 --out_dir elsewhere

Each run is what `python <script> <its options>` makes, in its own folder, one thread each. What is
finished is not made again, what was interrupted goes on. In a file, `script` names the script,
every other key is one of its options with a value, a list, or a range such as `0:10` (0 to 9), and
`cells` lists options that belong together. Options on the command line replace those of the file.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

import yaml

from lab.bench.cli import script
from lab.bench.errors import TrainingError, UserError
from lab.bench.files import is_finished
from lab.bench.sweeps import ROOT, Job, jobs_of, run_all


def grids_of(given: str) -> list[dict]:
    """The grids of a YAML file, or the one of a script without options."""
    path = Path(given)
    if path.suffix == ".py":
        return [{"script": given}]
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(f"a grid is a script or a YAML file; {given}: {reason[:100]}") from None
    grids = content if isinstance(content, list) else [content]
    if not all(isinstance(grid, dict) and "script" in grid for grid in grids):
        raise UserError(
            f"{given} should hold options with the name of a `script`, or a list of such"
        )
    return grids


def options_in(words: list[str]) -> dict[str, list]:
    """`--seed 0:3 --jr 0 1.0 --grokfast` as lists of values; a flag alone is true."""
    found: dict[str, list] = {}
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name] = [value] if equals else []
        elif found:
            found[name].append(word)
        else:
            raise UserError(f"sweep.py takes one script or file, got {word} too")
    return {name: values or [True] for name, values in found.items()}


def jobs_in(grids: list[dict], given: dict[str, list]) -> list[Job]:
    """All runs of the grids, with the options of the command line in the place of theirs."""
    jobs = []
    for grid in grids:
        name = Path(grid["script"]).stem
        if not (ROOT / f"{name}.py").is_file():
            raise UserError(f"there is no script {grid['script']}")
        options_class = importlib.import_module(name).Options
        own = {key: value for key, value in grid.items() if key != "script"}
        jobs += jobs_of(name, options_class, {**own, **given})
    return jobs


@script
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("grid", help="a script, or a YAML file of grids")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="runs at a time (default: all cores)"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    parser.error = lambda message: parser.exit(2, f"sweep.py: error: {message}\n")  # type: ignore[method-assign]
    o, words = parser.parse_known_args(argv)
    if o.workers < 1:
        raise UserError(f"--workers takes a whole number of at least 1, got {o.workers}")
    jobs = jobs_in(grids_of(o.grid), options_in(words))
    if o.dry_run:
        for job in jobs:
            print("python", *job.words())
        done = sum(is_finished(job.folder) for job in jobs)
        print(f"{len(jobs)} runs, {done} of them finished")
        return
    if failed := run_all(jobs, o.workers):
        print(*failed, sep="\n", file=sys.stderr)
        raise TrainingError(f"{len(failed)} of {len(jobs)} runs failed")
    for job in jobs:
        print(job.folder)


if __name__ == "__main__":
    raise SystemExit(main())
