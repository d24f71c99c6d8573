"""How long a sweep will take, by the runs that have finished."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

import xor_grokking
from lab.bench import estimates
from lab.bench.estimates import estimate, in_parallel, summary
from lab.bench.sweeps import Job


@pytest.fixture(autouse=True)
def without_committed_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(estimates, "ROOT", tmp_path / "elsewhere")


def job(**options):
    return Job("xor_grokking", xor_grokking.Options(device="cpu", **options))


def finished(updates, seconds, device="cpu, x86_64", continued=False, root="runs", **options):
    """A run of so many updates that took so long from its beginning to its end."""
    folder = Path(root) / job(**options).folder.relative_to("runs")
    folder.mkdir(parents=True)
    provenance = {
        "command": "", "device": device, "started": "2026-01-01T00:00:00+00:00",
        "finished": f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}+00:00",
        "training_seconds": seconds / 4, **({"continued": []} if continued else {}),
    }  # fmt: skip
    config = {**vars(job(**options).options), "provenance": provenance}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.csv").write_text(f"step,loss\n0,1.0\n{updates},0.5\n")


def test_the_runs_most_alike_are_taken_and_only_of_the_same_device():
    assert estimate(job()) is None
    finished(1000, 600, device="cuda:0, a card", seed=9)
    assert estimate(job()) is None
    finished(1000, 6, width=8)  # another size
    assert estimate(job()) is None
    finished(1000, 300, jr=0.5)  # other options
    assert estimate(job())[::2] == (300, True)
    finished(1000, 200, root="elsewhere/results", seed=5)  # a committed one
    assert estimate(job())[::2] == (200, False)
    finished(100, 10, seed=5, steps=100)  # another length, from its own folder
    assert estimate(job(seed=7)).seconds == 200
    finished(1000, 40, seed=1)
    finished(1000, 80, seed=2, continued=True)  # of which the time between would count too
    found = estimate(job(seed=7))
    assert found.seconds == (40 + 20) / 2 and len(found.like) == 2
    assert estimate(job(), "cuda").seconds == 600


def test_a_damaged_run_says_nothing_of_the_time():
    finished(1000, 40, seed=1)
    texts = {"empty": "", "list": "- 1\n", "steps": None, "none": None, "date": None, "table": None}
    for name, text in texts.items():
        folder = Path("runs/xor_grokking") / name
        shutil.copytree("runs/xor_grokking/seed=1", folder)
        config = (folder / "config.yaml").read_text()
        config = config.replace("steps: 1000", "steps: many") if name == "steps" else config
        config = config.replace("steps: 1000", "stops: 1000") if name == "none" else config
        config = config.replace("2026-01-01", "once") if name == "date" else config
        (folder / "config.yaml").write_text(config if text is None else text)
        if name == "table":
            (folder / "metrics.csv").write_text("loss\n1.0\n")
    found = estimate(job(seed=7))
    assert found.seconds == 40 and [run.folder.name for run in found.like] == ["seed=1"]


def test_what_is_replaced_begins_anew():
    finished(1000, 40)
    torch.save({"step": 1000}, job().folder / "checkpoint.pt")
    assert estimate(job()).seconds == 0
    assert estimate(job(overwrite=True)).seconds == 40


def test_updates_that_are_saved_or_not_needed_do_not_count():
    finished(500, 50, seed=1)  # of 1,000: it stopped half-way, as with --stop_at
    assert estimate(job()).seconds == 50
    folder = job().folder
    folder.mkdir()
    torch.save({"step": "many"}, folder / "checkpoint.pt")
    assert estimate(job()).seconds == 50
    torch.save({"step": 200}, folder / "checkpoint.pt")
    assert estimate(job()).seconds == pytest.approx(30)
    assert estimate(job(steps=4000, jr=1.0)).seconds == 200


def test_the_line_says_how_many_runs_it_stands_on():
    jobs = [job(seed=seed) for seed in range(5)]
    assert summary(jobs, 2) == (
        "estimated time: unknown, since no run of xor_grokking.py of that size has finished yet"
    )
    finished(1000, 60, seed=7)
    assert summary(jobs, 2) == "estimated time: 3 min, 2 at a time, by 1 finished run"
    other = Job("sparse_parity", jobs[0].options)
    assert summary([*jobs, other], 5) == (
        "estimated time: 60 s, 5 at a time, by 1 finished run; without 1 runs, since no run of "
        "sparse_parity.py of that size has finished yet"
    )
    finished(1000, 60, seed=7, jr=3.0)
    assert summary([job(jr=1.0)], 1) == (
        "estimated time: 60 s, 1 at a time, by 2 finished runs, some with other options"
    )


def test_runs_are_begun_in_turn():
    assert in_parallel([3, 1, 1, 1, 5], 2) == 8
    assert in_parallel([2, 9], 4) == 9
