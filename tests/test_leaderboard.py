"""The leaderboard: which trial is best, what is to be scored, the tables, and a method of yours."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import yaml
from matplotlib.figure import Figure

import accelerate
import report
import sweep
from helpers import ROOT
from lab.bench.sweeps import grids_of
from lab.methods.interface import methods
from lab.methods.tasks import TASKS
from lab.reports import Request, _scores, leaderboard
from lab.reports._pages import TEMPLATES, Pages

STEPS = 2100


@pytest.fixture(autouse=True)
def nothing_committed(monkeypatch):
    monkeypatch.setattr(_scores, "ROOT", Path("elsewhere"))


def request(out_dir, *words):
    return Request(Path(out_dir), words, "data", "python report.py", report.script_module)


def rows_of(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def row(method, trial, seed, held, best=0.99, steps=STEPS):
    """A row of a task, of which the tables need no more."""
    events = {"target": 0.95, "memorised_at": 50, "reached_at": held, "held_at": held}
    events |= {"best_test_accuracy": best, "last_test_accuracy": best, "updates": 1, "seconds": 36}
    found = {"method": method, "trial": trial, "seed": seed, "steps": steps, "lr": 0.1}
    found |= {"weight_decay": 0.5, "knobs": "", **events, "diverged": held is None}
    return {key: "" if value is None else str(value) for key, value in found.items()}


def written(task, held_by_method, folder="results/accelerate"):
    """Rows of a task: trials of which the fourth is best, and its scores."""
    rows = []
    for method, held in held_by_method.items():
        rows += [
            row(method, trial, 0, None if trial < 3 else 400 + trial) for trial in _scores.TRIALS
        ]
        rows += [row(method, 3, seed, step) for seed, step in zip(range(1, 11), held, strict=True)]
    path = Path(folder, f"{task}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    _scores.write(path, {_scores.key_of(each): each for each in rows})


TEN = range(1000, 1100, 10)
SOONER, LATER, NEVER = [step - 900 for step in TEN], [step + 500 for step in TEN], [None] * 10


def test_methods_are_told_from_the_baseline_by_all_their_seeds():
    written("xor_clusters", {"adamw": TEN, "a": SOONER, "b": LATER, "c": NEVER, "d": TEN})
    written("sparse_parity", {"adamw": NEVER, "a": NEVER, "b": [*[None] * 9, 100]})
    costs = {("t", "adamw"): "10", ("t", "grokfast_ema"): "9", ("t", "egd"): "9", ("t", "sam"): "8"}
    of = {method: _scores.cost_of(costs, "t", method) for _, method in costs}
    assert of == {"adamw": 0.01, "grokfast_ema": 0.01, "egd": 0.01, "sam": 0.008}  # sam: own step
    costs = "task,method,milliseconds\nxor_clusters,adamw,10\nxor_clusters,a,200\n"
    Path("results/accelerate/costs.csv").write_text(costs)
    tables = leaderboard.tables(request("results"))
    table = {r["method"].strip("`"): r for r in tables["xor_clusters"]}
    assert list(table) == ["a", "adamw", "d", "b", "c"]  # by their medians
    than = {name: r["than AdamW, in updates"] for name, r in table.items()}
    assert than == {"a": "sooner", "adamw": "–", "d": "undecided", "b": "later", "c": "later"}
    assert table["a"]["in seconds"] == "later"  # 145 updates of 0.2 s against 1,045 of 0.01 s
    assert table["a"]["seconds"].startswith("28.00 [20.00, ")
    assert table["c"]["updates to the target"] == "–"
    assert (table["c"]["failed"], table["a"]["failed"]) == ("10 of 10, 10 diverged", "0 of 10")
    assert table["a"]["trials that arrived"] == "13 of 16"
    assert table["a"]["best trial"] == "3: lr 0.1, decay 0.5"
    over = {r["method"].strip("`"): r for r in tables["all"]}
    assert over["a"]["sooner than AdamW, in updates"] == "1 of 2"
    assert over["b"]["later, in updates"] == "1 of 2"  # one seed of ten decides nothing
    assert over["a"]["median updates of AdamW / its own"].startswith("7.43 (")
    assert over["a"]["cost of an update / AdamW's"] == "20.00 (20.00 to 20.00)"
    assert over["c"]["failed"] == "10 of 10"
    assert over["a"]["trials that arrived"] == "26 of 32"
    assert tables["verdict"][0]["most, updates"] == "none"
    assert tables["verdict"][0]["never, updates"] == "`b`, `c`, `d`"
    assert tables["spent"] == [{"runs": "208", "hours": "2.1"}]
    path = Path("results/accelerate/modular_mlp.csv")
    _scores.write(path, {("adamw", 3, 0): row("adamw", 3, 0, 400)})
    assert leaderboard.tables(request("results"))["verdict"] == []  # one task's scores are missing


def test_the_best_trial_is_the_first_to_hold_or_else_the_nearest():
    of = [("a", held, 0.9) for held in [None, 500, 300, *[None] * 13]]
    of += [("b", None, 0.5 + 0.01 * (trial == 7)) for trial in _scores.TRIALS]
    of += [("c", 100, 0.9)] * 15  # one is missing
    numbers = [*range(16), *range(16), *range(15)]
    rows = [
        row(m, trial, 0, held, best) for trial, (m, held, best) in zip(numbers, of, strict=True)
    ]
    rows += [row("a", 5, 3, 10), row("a", 20, 0, 10)]  # another seed, and no trial of the budget
    found = _scores.trials_of(rows, STEPS)
    assert {method: int(best["trial"]) for method, (best, *_) in found.items()} == {"a": 2, "b": 7}


def test_a_method_that_is_later_on_some_tasks_is_told_from_one_that_is_not():
    signs = {"a": (1, 1, 0), "b": (1, 1, -1), "c": (0, -1, 0), "d": (1, 0, 0)}
    found = {
        (f"task {i}", m, "updates"): s for m, each in signs.items() for i, s in enumerate(each)
    }
    row = leaderboard.verdict(found)
    assert [row[f"{name}, updates"] for name in ("most", "mixed", "never")] == ["`a`", "`b`", "`c`"]
    assert row["most, seconds"] == "none"
    assert sorted("dcba", key=leaderboard.places(found)) == ["a", "b", "d", "c"]


def test_the_page_stands_on_the_rows():
    for task in set(TASKS) - {"omnigrok_mnist"}:
        written(task, {"adamw": TEN, "grokalign": SOONER, "sam": LATER})
    text = Pages(Path("results"), report.script_module, "data", draw=True)._text("accelerate")
    assert "on most tasks sooner and on none later are `grokalign` (in seconds" in text
    assert "in updates sooner on 6 of 6 tasks, later on 0 of 6; in seconds" in text
    assert text.count("| `sam` | 0.95 | 1,540 [1,500, ") == 6
    assert "not run yet" not in text
    assert Path("results/accelerate/leaderboard.png").stat().st_size > 10_000
    assert not Path("results/accelerate/scores.yaml").exists()


def undrawn(*given, **named):
    """A picture with an empty panel, which takes no time."""
    drawing = Figure()
    drawing.subplots()
    return drawing


def test_from_trials_to_scores_to_tables_and_every_row_can_be_made_again(monkeypatch, capsys):
    monkeypatch.setattr(accelerate, "metric_panels", undrawn)
    monkeypatch.setattr(_scores, "TRIALS", range(1))
    for module in (_scores, leaderboard):
        monkeypatch.setattr(module, "SEEDS", range(1, 3))
    grid = {"script": "accelerate.py", "task": "xor_clusters", "method": ["adamw", "grokalign"]}
    for job in sweep.jobs_in([grid], {"trial": ["0"], "steps": ["130"]}):
        assert accelerate.main([*job.words()[1:], "--quiet"]) == 0
    assert report.main(["leaderboard", "steps=130"]) == 0
    assert "2 best trials to be scored: python sweep.py runs/acc" in capsys.readouterr().out
    scores = sweep.jobs_in(grids_of("runs/accelerate/scores.yaml"), {})
    assert {(job.options.method, job.options.seed) for job in scores} == {
        (method, seed) for method in ("adamw", "grokalign") for seed in (1, 2)
    }
    for job in scores:
        assert accelerate.main([*job.words()[1:], "--quiet"]) == 0
    capsys.readouterr()
    assert report.main(["leaderboard", "steps=130"]) == 0
    assert "| `grokalign` | 0.95 | " in capsys.readouterr().out
    assert not Path("runs/accelerate/scores.yaml").exists()
    rows = rows_of("runs/accelerate/xor_clusters.csv")
    assert len(rows) == 6 and {r["steps"] for r in rows} == {"130"}
    for made in rows[1::2]:
        again(made)


def again(made):
    """Makes a row's run again, by its command, and compares what comes out."""
    shutil.rmtree("again", ignore_errors=True)
    words = made["command"].split()
    assert words[:2] == ["python", "accelerate.py"]
    assert accelerate.main([*words[2:], "--device", "cpu", "--out_dir", "again"]) == 0
    (config,) = Path("again").glob("*/*/config.yaml")
    results = yaml.safe_load(config.read_text())["results"]
    for key in (*_scores.EVENTS, "lr", "weight_decay"):
        assert made[key] == ("" if results[key] is None else str(results[key])), key


@pytest.mark.slow
def test_committed_rows_can_be_made_again():
    tables = sorted((ROOT / "results/accelerate").glob("*_*.csv"))
    for path in tables[:: max(len(tables) // 3, 1)]:
        came = [each for each in rows_of(path) if each["held_at"]]
        again(min(came, key=lambda each: float(each["seconds"])))


def test_the_grid_holds_every_method_on_every_task_that_it_can_do():
    jobs = sweep.jobs_in(grids_of(str(ROOT / "configs/leaderboard.yaml")), {})
    tasks = set(TASKS) - {"omnigrok_mnist"}
    cannot = {("sparse_parity", "stablemax"), ("xor_clusters", "stablemax")}
    pairs = {(task, method) for task in tasks for method in methods()} - cannot
    assert {(j.options.task, j.options.method) for j in jobs} == pairs
    assert {j.options.trial for j in jobs} == set(_scores.TRIALS)
    assert len(jobs) == len(pairs) * len(_scores.TRIALS)


@pytest.mark.parametrize(
    ("typed", "tasks"),
    [
        ({"method": ["stablemax"]}, 4),
        ({"method": ["muon"]}, 6),
        ({"task": ["sparse_parity"], "method": ["muon"]}, 1),
    ],
)
def test_a_methods_own_row_is_on_the_tasks_that_it_can_do(typed, tasks):
    jobs = sweep.jobs_in(grids_of(str(ROOT / "configs/leaderboard.yaml")), typed)
    assert len(jobs) == tasks * len(_scores.TRIALS)


YOURS = """
import accelerate, report, sweep

one = ["--task", "xor_clusters", "--method", "my_method", "--steps", "20", "--trial"]
codes = [
    sweep.main(["configs/leaderboard.yaml", "--method", "my_method", "--dry_run"]),
    *(accelerate.main([*one, trial, "--device", "cpu"]) for trial in "01"),
    report.main(["leaderboard", "steps=20"]),
]
raise SystemExit(max(codes))
"""


def test_a_method_of_yours_is_one_file(tmp_path):
    """Exactly as the page says: its file, and the commands of `make leaderboard`, tiny."""
    copy = tmp_path / "copy"
    for name in ("lab", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("accelerate.py", "sweep.py", "report.py", "utils.py"):
        shutil.copy(ROOT / name, copy)
    page = (TEMPLATES / "accelerate.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (copy / "lab/methods/my_method.py").write_text(code)
    target = (ROOT / "Makefile").read_text().partition("\nleaderboard:")[2].partition("\n\n")[0]
    assert "make leaderboard METHOD=my_method" in page
    assert "sweep.py configs/leaderboard.yaml $(if $(METHOD),--method $(METHOD))" in target
    ended = subprocess.run(
        [sys.executable, "-c", YOURS], cwd=copy, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    lines = [line for line in ended.stdout.splitlines() if line.startswith("python ")]
    assert len(lines) == 6 * len(_scores.TRIALS) and all(
        "--method my_method" in line for line in lines
    )
    rows = [r for r in rows_of(copy / "runs/accelerate/xor_clusters.csv") if r["steps"] == "20"]
    assert len(rows) == 2 and all(r["knobs"].startswith("share=0.") for r in rows)
    assert rows[0]["knobs"] != rows[1]["knobs"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("leaderboard", "there is no finished trial of accelerate.py in runs/accelerate"),
        ("leaderboard task=xor_clusters", "leaderboard takes steps=N alone"),
        ("leaderboard grokalign", "options of runs, such as steps=8000"),
    ],
)
def test_bad_calls_are_one_line(words, says, capsys):
    assert report.main(words.split()) == 2
    complaint = capsys.readouterr().err
    assert says in complaint and complaint.count("\n") == 1


def test_a_methods_look_stays_whatever_else_is_drawn():
    def looks(held_by_method):
        written("xor_clusters", held_by_method)
        asked = request("results")
        drawing = leaderboard.figure(leaderboard.board_of(asked, _scores.rows_of(asked)), "")
        names = [text.get_text() for text in drawing.legends[0].get_texts()]
        lines = drawing.legends[0].get_lines()
        return dict(zip(names, [(x.get_color(), x.get_linestyle()) for x in lines], strict=True))

    some = {"adamw": TEN, "grokalign": SOONER, "sam": LATER}
    few, many = looks(some), looks({**some, "a_method_of_mine": TEN, "egd": LATER, "muon": TEN})
    assert list(few) == ["adamw", "grokalign", "sam"] and few.items() <= many.items()
    names = list(many)
    assert names[0] == "adamw" and names[-1] == "a_method_of_mine"
    assert len({*many.values()}) == 6


def test_what_never_comes_is_drawn_as_a_line_at_nothing():
    written("xor_clusters", {"adamw": NEVER, "grokalign": SOONER})
    asked = request("results")
    drawing = leaderboard.figure(leaderboard.board_of(asked, _scores.rows_of(asked)), "")
    lines = [numpy.array(line.get_ydata()) for line in drawing.axes[0].lines]
    assert sorted(line.max() for line in lines) == [0, 1]
