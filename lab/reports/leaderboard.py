"""The leaderboard: which method makes a network grok sooner, from accelerate.py's runs.

    python report.py leaderboard     # what is still to be scored, then the tables

Trials have seed 0; the one that held the target first, or else came nearest to it, is scored with
seeds 1 to 10. Every run becomes a row of `<out_dir>/accelerate/<task>.csv`, with the command that
makes it again; those that are committed stand beside them. Runs that never hold the target are
censored at the last step at which they could have begun to.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable

import numpy
import yaml
from matplotlib.figure import Figure
from scipy import stats

from lab.bench import plots
from lab.bench.errors import UserError
from lab.bench.files import read_yaml, write_figure, write_text
from lab.bench.statistics import Row, markdown
from lab.bench.sweeps import ROOT
from lab.methods.tasks import TASKS
from lab.reports import Request
from lab.reports._scores import (
    BASELINE,
    SCRIPT,
    SEEDS,
    Board,
    Scored,
    Table,
    about,
    board_of,
    rows_of,
    scores_of,
    spent,
    steps_of,
    trials_of,
    write,
)

LEVEL = 0.05  # share of false discoveries among the comparisons with the baseline
OURS = "grokalign"
UNITS = ("updates", "seconds")
Differences = dict[
    tuple[str, str, str], float
]  # task, method and unit -> sooner 1, later -1, else 0


def report(request: Request) -> None:
    """Writes the rows, the grid of what is to be scored, and the picture; prints the tables.

    Raises:
        UserError: if there are no runs, or a word is not `steps=N`.
    """
    folder, rows = request.out_dir / SCRIPT, rows_of(request)
    if not rows:
        raise UserError(f"there is no finished trial of {SCRIPT}.py in {folder}")
    if any(folder.glob("*/config.yaml")):
        for task, table in rows.items():
            write(folder / f"{task}.csv", table)
        score(request, rows)
    for name, table in tables(request).items():
        if table and name != "methods":
            print(f"{name}\n\n{markdown(table)}\n")
    if board := board_of(request, rows):
        write_figure(folder / "leaderboard.png", figure(board, request.typed))
        print(folder / "leaderboard.png")


def score(request: Request, rows: dict[str, Table]) -> None:
    """Writes the grid of the best trials that lack seeds, and says how to make their runs."""
    path, steps, cells = request.out_dir / SCRIPT / "scores.yaml", steps_of(request), []
    for task, table in rows.items():
        for method, (best, *_) in trials_of(table.values(), steps).items():
            if len(scores_of(table.values(), best)) < len(SEEDS):
                cells.append({"task": task, "method": method, "trial": int(best["trial"])})
    path.unlink(missing_ok=True)
    if cells:
        grid = {"script": f"{SCRIPT}.py", "seed": f"{SEEDS[0]}:{SEEDS[-1] + 1}", "steps": steps}
        grid |= {"out_dir": str(request.out_dir), "cells": cells}
        write_text(path, yaml.safe_dump(grid, sort_keys=False))
        print(f"{len(cells)} best trials to be scored: python sweep.py {path}, then this again\n")


def tables(request: Request) -> dict[str, list[Row]]:
    """A table a task, one over all tasks, and what they come to, empty without scores; the methods.

    Raises:
        UserError: if a word is not `steps=N`.
    """
    rows = rows_of(request)
    board = board_of(request, rows)
    found = differences(board)
    others = {method for scored in board.values() for method in scored} - {BASELINE}
    overall = [over_all(board, found, method) for method in sorted(others, key=places(found))]
    return {
        **{task: of_task(board.get(task, {}), found, task) for task in TASKS},
        "all": overall,
        # None while some of the tasks that have trials lack their scores.
        "verdict": [verdict(found)] if overall and set(board) == {*filter(rows.get, rows)} else [],
        "spent": [spent(rows)] if rows else [],
        "methods": about(),
    }


def of_task(scored: dict[str, Scored], found: Differences, task: str) -> list[Row]:
    """A task's methods, the one that is first in the median on top."""
    rows = []
    for method, each in scored.items():
        words = {1: "sooner", -1: "later", 0: "undecided"}
        than = [words[found.get((task, method, unit), 0)] for unit in UNITS]
        came = sum(bool(run["held_at"]) for run in each.trials)
        failed = sum(not run["held_at"] for run in each.runs)
        diverged = sum(run["diverged"] == "True" for run in each.runs)
        rows.append(
            {
                "method": f"`{method}`",
                "target": each.best["target"],
                "updates to the target": each.text(),
                "seconds": each.text(each.cost, ",.2f"),
                "than AdamW, in updates": "–" if method == BASELINE else than[0],
                "in seconds": "–" if method == BASELINE or each.cost is None else than[1],
                "failed": f"{failed} of {len(each.runs)}"
                + f", {diverged} diverged" * bool(diverged),
                "trials that arrived": f"{came} of {len(each.trials)}",
                "best trial": settings(each.best),
            }
        )
    return rows


def settings(row: Row) -> str:
    """`3: lr 0.01, weight decay 0.5, alpha=0.9`."""
    shared = f"{row['trial']}: lr {float(row['lr']):g}, decay {float(row['weight_decay']):g}"
    return ", ".join([shared, *row["knobs"].split()])


def differences(board: Board) -> Differences:
    """Log-rank tests of every method against the baseline, with false discoveries controlled."""
    found: Differences = {}
    for unit in UNITS:
        signs, ps = {}, []
        for task, scored in board.items():
            base = scored[BASELINE]
            for method, each in scored.items():
                costs = (1.0, 1.0) if unit == "updates" else (each.cost, base.cost)
                if method == BASELINE or None in costs:
                    continue
                samples = [s.censored(c) for s, c in zip((each, base), costs, strict=True)]
                if any(s.num_censored() < len(s) for s in samples):
                    test = stats.logrank(*samples)
                    sign, p = numpy.sign(test.statistic), test.pvalue
                else:  # nobody ever arrived
                    sign, p = 0, 1.0
                signs[task, method, unit] = int(sign)
                ps.append(p)
        decided = stats.false_discovery_control(ps) < LEVEL if ps else []
        found |= {key: signs[key] * bool(d) for key, d in zip(signs, decided, strict=True)}
    return found


def over_all(board: Board, found: Differences, method: str) -> Row:
    """A method over all tasks that it can do."""
    pairs = {t: (s[BASELINE], s[method]) for t, s in board.items() if method in s}
    ratios = [base.median() / own.median() for base, own in pairs.values()
              if numpy.isfinite([base.median(), own.median()]).all()]  # fmt: skip
    costs = [own.cost / base.cost for base, own in pairs.values() if own.cost and base.cost]
    runs = [run for _, own in pairs.values() for run in own.runs]
    trials = [trial for _, own in pairs.values() for trial in own.trials]
    row = {"method": f"`{method}`"}
    for unit in UNITS:
        signs = [found[task, method, unit] for task in pairs if (task, method, unit) in found]
        row[f"sooner than AdamW, in {unit}"] = f"{signs.count(1)} of {len(signs)}" if signs else "–"
        row[f"later, in {unit}"] = f"{signs.count(-1)} of {len(signs)}" if signs else "–"
    row["median updates of AdamW / its own"] = spread(ratios)
    row["cost of an update / AdamW's"] = spread(costs)
    row["failed"] = f"{sum(not run['held_at'] for run in runs)} of {len(runs)}"
    row["trials that arrived"] = f"{sum(bool(t['held_at']) for t in trials)} of {len(trials)}"
    return row


def spread(ratios: list[float]) -> str:
    """`1.50 (0.80 to 2.00)`: the median of the tasks and the range."""
    if not ratios:
        return "–"
    return f"{numpy.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def signs_of(found: Differences, unit: str) -> dict[str, list[int]]:
    """Method -> 1, -1 or 0 for each of its tasks."""
    signs = defaultdict(list)
    for (_, method, of), sign in sorted(found.items(), key=lambda item: item[0][1]):
        if of == unit:
            signs[method].append(sign)
    return signs


def places(found: Differences) -> Callable[[str], tuple[float, str]]:
    """For sorting: methods that are sooner on the largest share of their tasks come first."""
    shares = {m: each.count(1) / len(each) for m, each in signs_of(found, UNITS[0]).items()}
    return lambda method: (-shares.get(method, 0.0), method)


def verdict(found: Differences) -> Row:
    """The methods sooner than AdamW on most tasks and later on none, or on some; and on none."""
    row = {}
    for unit in UNITS:
        signs = signs_of(found, unit)
        most = {m for m, each in signs.items() if 2 * each.count(1) > len(each)}
        later = {m for m, each in signs.items() if -1 in each}
        never = {m for m, each in signs.items() if 1 not in each}
        for name, which in {"most": most - later, "mixed": most & later, "never": never}.items():
            row[f"{name}, {unit}"] = ", ".join(f"`{m}`" for m in sorted(which)) or "none"
    return row


def figure(board: Board, typed: str) -> Figure:
    """The share of ten seeds that hold the target, by updates: a panel a task, a line a method.

    A method of the committed grid has its look whatever else is there; one of yours comes behind.
    """
    drawing, axes = plots.grid(len(board), typed)
    cells = read_yaml(ROOT / "configs" / "leaderboard.yaml")["cells"]
    listed = dict.fromkeys(method for cell in cells for method in cell["method"])
    yours = sorted({method for scored in board.values() for method in scored} - listed.keys())
    looks = itertools.cycle(itertools.product(plots.LINES, plots.COLOURS[:-1]))
    styles = {BASELINE: ("-", plots.COLOURS[-1])}
    styles |= zip([m for m in (*listed, *yours) if m != BASELINE], looks, strict=False)
    thick = {BASELINE, OURS, *yours}
    lines = {}
    for panel, (task, scored) in zip(axes, board.items(), strict=True):
        for method, each in scored.items():
            share = stats.ecdf(each.censored()).cdf
            style, colour = styles[method]
            (lines[method],) = panel.step(
                [0, *share.quantiles, each.cap], [0, *share.probabilities, share.probabilities[-1]],
                where="post", ls=style, color=colour, lw=3 if method in thick else 1.5,
            )  # fmt: skip
        plots.step_axis(panel, each.cap)
        panel.set_xlim(left=5)  # the first measurement after the beginning is at ten
        panel.set(title=plots.in_words(task), ylabel="share of seeds at the target")
    order = [method for method in styles if method in lines]
    drawing.legend([lines[m] for m in order], order, loc="outside upper center", ncols=6)
    return drawing
