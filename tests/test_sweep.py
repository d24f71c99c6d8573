"""sweep.py: which runs a grid holds, and that what is there is not made again."""

import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

import sweep
import xor_grokking
from helpers import ROOT, run, start
from lab.bench.errors import UserError
from lab.bench.options import parse
from lab.bench.sweeps import Job, jobs_of

TINY = ("--p", 60, "--n", 8, "--width", 6, "--steps", 4)


def names(grid):
    return [job.folder.name for job in jobs_of("xor_grokking", xor_grokking.Options, grid)]


def test_lists_and_ranges_are_combined_and_cells_listed():
    assert names({"jr": ["0", "1.0"], "seed": "1:3"}) == [
        "seed=1", "seed=2", "jr=1.0,seed=1", "jr=1.0,seed=2",
    ]  # fmt: skip
    grid = {"seed": [0, 4], "cells": [{}, {"jr": 1.0, "weight_decay": 0}, {"full_dimension": True}]}
    assert names(grid) == [
        "default", "seed=4", "jr=1.0,weight_decay=0.0", "jr=1.0,weight_decay=0.0,seed=4",
        "full_dimension", "full_dimension,seed=4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({"colour": 3}, "xor_grokking.py has no option --colour"),
        ({"seed": "3:3"}, "--seed takes a range that is not empty, got 3:3"),
        ({"jr": []}, "--jr takes at least one value"),
        ({"jr": [0, -1]}, "--jr takes a number of at least 0, got -1"),
        ({"seed": [1, 1]}, "the grid holds seed=1 twice"),
    ],
)
def test_bad_grids_are_named(grid, says):
    with pytest.raises(UserError, match=says.replace(".", r"\.")):
        names(grid)


def test_a_job_is_what_a_user_would_type():
    words = ["--jr", "0.5", "--full_dimension", "--seed", "3", "--name", "a name"]
    o = parse(xor_grokking.Options, None, words)
    name, *again = Job("xor_grokking", o).words()
    assert name == "xor_grokking.py"
    assert parse(xor_grokking.Options, None, again) == o


def test_makes_what_is_missing_and_nothing_else(tmp_path):
    words = ("sweep.py", "xor_grokking.py", *TINY, "--jr", 0, 1.0)
    done = run(*words, "--seed", 0, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    folders = done.stdout.splitlines()
    assert len(folders) == 2
    before = {f: (tmp_path / f / "checkpoint.pt").stat().st_mtime_ns for f in folders}
    config = yaml.safe_load((tmp_path / folders[0] / "config.yaml").read_text())
    command = config["provenance"]["command"].split()[1:]
    alone = run(*command, "--out_dir", "alone", folder=tmp_path)
    assert alone.returncode == 0, alone.stderr
    metrics = [(tmp_path / f / "metrics.csv") for f in (folders[0], alone.stdout.strip())]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()
    planned = run(*words, "--seed", "0:2", "--dry_run", folder=tmp_path)
    assert planned.stdout.splitlines()[-1] == "4 runs, 2 of them finished"
    again = run(*words, "--seed", "0:2", folder=tmp_path)
    assert len(again.stdout.splitlines()) == 4
    assert {f: (tmp_path / f / "checkpoint.pt").stat().st_mtime_ns for f in folders} == before


def test_a_grid_of_a_file_and_failures_that_do_not_stop_the_rest(tmp_path):
    grid = {"script": "xor_grokking.py", "p": 60, "n": 8, "width": 6, "steps": 4, "jr": [0.0, 1.0]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump([grid]))
    in_the_way = tmp_path / "runs/xor_grokking/p=60,n=8,width=6,steps=4"
    in_the_way.mkdir(parents=True)
    (in_the_way / "notes.txt").write_text("not a run")
    done = run("sweep.py", "grid.yaml", "--workers", 1, folder=tmp_path)
    assert done.returncode == 1
    assert "holds notes.txt but no config.yaml" in done.stderr
    assert "1 of 2 runs failed" in done.stderr
    assert (tmp_path / "runs/xor_grokking/p=60,n=8,width=6,jr=1.0,steps=4/figure.png").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_stopped_sweep_leaves_its_runs_saved_and_goes_on(tmp_path):
    words = ("sweep.py", "xor_grokking.py", *TINY[:-1], 3000, "--num_logs", 8, "--workers", 1)
    process = start(*words, folder=tmp_path)
    folder = tmp_path / "runs/xor_grokking/p=60,n=8,width=6,steps=3000,num_logs=8"
    while process.poll() is None and not (folder / "metrics.csv").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "the same command without --overwrite continues" in err
    assert (folder / "checkpoint.pt").exists()
    done = run(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (folder / "metrics.csv").read_text().splitlines()[-1].startswith("3000,")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.py"], "there is no script nowhere.py"),
        (["nowhere.yaml"], "a grid is a script or a YAML file; nowhere.yaml: No such file"),
        (["xor_grokking.py", "more.py"], "takes one script or file, got more.py too"),
        (["xor_grokking.py", "--colour", "red"], "has no option --colour"),
        (["xor_grokking.py", "--workers", "0"], "--workers takes a whole number of at least 1"),
    ],
)
def test_bad_calls_are_one_line(words, says, capsys):
    assert sweep.main(words) == 2
    complaint = capsys.readouterr().err
    assert says in complaint
    assert len(complaint.splitlines()) == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_committed_grid_can_be_made(path):
    content = yaml.safe_load(path.read_text())
    if isinstance(content, dict) and "script" not in content:
        pytest.skip("options of a single run")
    assert sweep.jobs_in(sweep.grids_of(str(path)), {})
