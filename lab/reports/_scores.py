"""The rows of the leaderboard: trials, the best of them, its runs on other seeds; the methods."""

from __future__ import annotations

import csv
import importlib
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from lab.bench.errors import UserError
from lab.bench.files import write_rows
from lab.bench.statistics import Finished, Row, arrival, finished_runs
from lab.bench.sweeps import ROOT, Job
from lab.methods.interface import Method, methods
from lab.methods.tasks import TASKS
from lab.methods.trials import SHARED
from lab.reports import Request
from lab.reports._words import options_in

SCRIPT, BASELINE, METHODS = "accelerate", "adamw", methods()
TRIALS, TUNING, SEEDS = range(16), 0, range(1, 11)
IDENTITY = ("method", "trial", "seed", "steps")
EVENTS = ("target", "memorised_at", "reached_at", "held_at", "best_test_accuracy",
          "last_test_accuracy", "updates", "diverged")  # fmt: skip
Table = dict[tuple[str, ...], Row]  # by IDENTITY


class Scored(NamedTuple):
    """The ten runs of a method's best trial on a task."""

    best: Row
    runs: list[Row]
    trials: list[Row]
    cap: int
    """The last step at which a run could have begun to hold the target."""
    cost: float | None
    """Seconds of an update."""

    def arrivals(self, cost: float = 1.0) -> list[float | None]:
        """Updates until the target was held, times what one costs; None for never."""
        return [cost * int(r["held_at"]) if r["held_at"] else None for r in self.runs]

    def text(self, cost: float | None = 1.0, form: str = ",.0f") -> str:
        """Their median and its interval."""
        if cost is None:
            return "–"
        ends = [cost * self.cap] * len(self.runs)
        return arrival(self.arrivals(cost), ends, form).rpartition(" (")[0]

    def median(self) -> float:
        """Of the updates, those that never came counted as late; the one that `text` gives."""
        return statistics.median_low(math.inf if a is None else a for a in self.arrivals())

    def censored(self, cost: float = 1.0) -> stats.CensoredData:
        """The arrivals as scipy has them."""
        came = [each for each in self.arrivals(cost) if each is not None]
        return stats.CensoredData(came, right=[cost * self.cap] * (len(self.runs) - len(came)))


Board = dict[str, dict[str, Scored]]  # task -> method


def steps_of(request: Request) -> int:
    """The cap that the runs have; raises UserError if a word says anything else."""
    options = request.script(SCRIPT).Options
    given = options_in(request, options)
    if given.keys() - {"steps"}:
        raise UserError(f"leaderboard takes steps=N alone, got {' '.join(request.words)}")
    return given.get("steps", options().steps)


def rows_of(request: Request) -> dict[str, Table]:
    """Task -> its rows: those of the folder and, if it has runs, these and the committed ones."""
    options, folder = request.script(SCRIPT).Options, request.out_dir / SCRIPT
    found: dict[str, Table] = defaultdict(dict)
    own = any(folder.glob("*/config.yaml"))
    for place in (*[ROOT / "results" / SCRIPT] * own, folder):
        for task in TASKS:
            if (path := place / f"{task}.csv").exists():
                with path.open(newline="") as file:
                    found[task] |= {key_of(row): row for row in csv.DictReader(file)}
    free = ("task", "method", "trial")
    groups = finished_runs(folder, options, free, steps=steps_of(request))
    for (task, _, trial), runs in sorted(groups.items(), key=str):
        for run in runs.values() if trial is not None else ():
            row = row_of(run, options)
            found[task][key_of(row)] = row
    return found


def key_of(row: Row) -> tuple[str, ...]:
    """What tells a row from the others of its task."""
    return tuple(row[name] for name in IDENTITY)


def row_of(run: Finished, options: Any) -> Row:
    """A run as a row: what it is, what came out, what made it, and the command."""
    made, results = run.config["provenance"], run.results
    settings = {k: v for k, v in results.items() if k not in EVENTS}
    shared = {k: settings.pop(k) for k in ("lr", "weight_decay")}
    job = Job(SCRIPT, options(**{k: run.config[k] for k in options().identity() if k != "knobs"}))
    row = {name: run.config[name] for name in IDENTITY} | shared
    row["knobs"] = " ".join(f"{name}={value:g}" for name, value in settings.items())
    row |= {name: results[name] for name in EVENTS}
    row |= {"seconds": made["training_seconds"], "torch": made["packages"]["torch"]}
    row |= {"commit": made["commit"], "command": job.line()}
    return {name: "" if value is None else str(value) for name, value in row.items()}


def write(path: Path, table: Table) -> None:
    """A task's rows, sorted, as CSV."""
    rows = sorted(table.values(), key=lambda r: (r["method"], int(r["trial"]), int(r["seed"])))
    write_rows(path, rows)


def trials_of(rows: Iterable[Row], steps: int) -> dict[str, list[Row]]:
    """Method -> its trials, the best first, for methods with all of them."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of_trial = int(row["seed"]) == TUNING and int(row["trial"]) in TRIALS
        if of_trial and int(row["steps"]) == steps:
            found[row["method"]].append(row)

    def late(row: Row) -> tuple[float, float, int]:
        held = int(row["held_at"] or steps + 1)
        return held, -float(row["best_test_accuracy"]), int(row["trial"])

    return {m: sorted(found[m], key=late) for m in found if len(found[m]) == len(TRIALS)}


def scores_of(rows: Iterable[Row], best: Row) -> list[Row]:
    """The runs of a trial on the other seeds."""
    same = [r for r in rows if all(r[k] == best[k] for k in ("method", "trial", "steps"))]
    return [row for row in same if int(row["seed"]) in SEEDS]


def cost_of(costs: dict[tuple[str, str], str], task: str, method: str) -> float | None:
    """Seconds of an update; at least the baseline's for methods that add to all of its work."""
    of, at_least = METHODS.get(method), costs.get((task, BASELINE), "0")
    if (found := costs.get((task, method))) is None:
        return None
    adds = of and of.optimiser is Method.optimiser and of.loss is Method.loss
    return max(float(found), float(at_least) if adds else 0.0) / 1000


def board_of(request: Request, rows: dict[str, Table]) -> Board:
    """What has all its trials and scores, on the tasks that the baseline has finished."""
    steps, module, costs = steps_of(request), request.script(SCRIPT), {}
    for place in (ROOT / "results" / SCRIPT, request.out_dir / SCRIPT):
        if (path := place / "costs.csv").exists():
            with path.open(newline="") as file:
                costs |= {(r["task"], r["method"]): r["milliseconds"] for r in csv.DictReader(file)}
    board: Board = {}
    for task in filter(rows.get, TASKS):
        every, found = list(rows[task].values()), {}
        for method, trials in trials_of(every, steps).items():
            runs = scores_of(every, trials[0])
            if len(runs) == len(SEEDS):
                cost = cost_of(costs, task, method)
                cap = steps - module.EVERY * module.HELD
                found[method] = Scored(trials[0], runs, trials, cap, cost)
        if BASELINE in found:
            board[task] = dict(sorted(found.items(), key=lambda item: item[1].median()))
    return board


def about() -> list[Row]:
    """Every method: its name, its rule and source as its file says, its knobs and their ranges."""
    ranges = [f"`{k}` {v.least:g} to {v.most:g}" for k, v in SHARED.items()]
    rows = [{"method": "all", "rule": "AdamW's settings", "knobs": ", ".join(ranges)}]
    for name, kind in METHODS.items():
        account, *_ = (importlib.import_module(kind.__module__).__doc__ or "–").splitlines()
        knobs = [f"`{k}` {v.least:g} to {v.most:g}" for k, v in kind.knobs().items()]
        rows.append({"method": f"`{name}`", "rule": account, "knobs": ", ".join(knobs) or "–"})
    return rows


def spent(rows: dict[str, Table]) -> Row:
    """How many runs there are, and what their updates took."""
    every = [row for table in rows.values() for row in table.values()]
    hours = sum(float(row["seconds"]) for row in every) / 3600
    return {"runs": f"{len(every):,}", "hours": f"{hours:.1f}"}
