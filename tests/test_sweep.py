"""sweep.py: which runs a grid holds, and that what is there is not made again."""

import dataclasses
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

import delayed_robustness
import inhibiting_generalisation
import linear_regions
import report
import sweep
import xor_grokking
from helpers import ROOT, start
from lab.bench import processes
from lab.bench.errors import Interrupted, UserError
from lab.bench.options import parse
from lab.bench.sweeps import Job, jobs_of, options_in

TINY = ("--p", 60, "--n", 8, "--width", 6, "--steps", 4)


def names(grid, typed=None):
    jobs = jobs_of("xor_grokking", xor_grokking.Options, grid, typed)
    return [job.folder.name for job in jobs]


def metrics(folder, name):
    return Path(folder, "xor_grokking", name, "metrics.csv").read_bytes()


def test_lists_and_ranges_are_combined_and_cells_listed():
    assert names({"jr": ["0", "1.0"], "seed": "1:3"}) == [
        "seed=1", "seed=2", "jr=1.0,seed=1", "jr=1.0,seed=2",
    ]  # fmt: skip
    grid = {"seed": [0, 4], "cells": [{}, {"jr": 1.0, "weight_decay": 0}, {"full_dimension": True}]}
    assert names(grid) == [
        "default", "seed=4", "jr=1.0,weight_decay=0.0", "jr=1.0,weight_decay=0.0,seed=4",
        "full_dimension", "full_dimension,seed=4",
    ]  # fmt: skip
    typed = options_in(["--seed", "7", "--full_dimension", "true", "false"])
    assert names({**grid, "cells": grid["cells"][:2]}, typed) == [
        "full_dimension,seed=7", "seed=7",
        "jr=1.0,weight_decay=0.0,full_dimension,seed=7", "jr=1.0,weight_decay=0.0,seed=7",
    ]  # fmt: skip


def test_typed_values_choose_the_cells_that_list_them():
    grid = {"cells": [{}, {"jr": [1, 2], "full_dimension": True}, {"jr": 3}]}
    of = {
        words: names(grid, options_in(words.split())) for words in ("--jr 1.0", "--jr 3", "--jr 4")
    }
    assert of == {
        "--jr 1.0": ["jr=1.0,full_dimension"],
        "--jr 3": ["jr=3.0"],
        "--jr 4": [
            "jr=4.0",
            "jr=4.0,full_dimension",
            "jr=4.0",
        ],  # none lists it, so all are replaced
    }
    with pytest.raises(UserError, match="has no option --colour"):
        names(grid, {"colour": ["red"]})


def test_a_run_that_two_cells_hold_is_made_once():
    grid = {"script": "xor_grokking.py", "cells": [{"jr": 1}, {"jr": 2, "seed": [0, 1]}]}
    jobs = sweep.jobs_in([grid, {"script": "xor_grokking.py", "seed": 1}], {"jr": ["3"]})
    assert [job.folder.name for job in jobs] == ["jr=3.0", "jr=3.0,seed=1"]


def test_an_option_of_several_words_is_one_value_in_a_file_and_refused_when_typed():
    def samples(given, typed=None):
        jobs = jobs_of("linear_regions", linear_regions.Options, {"samples": given}, typed)
        return [job.options.samples for job in jobs]

    assert samples([3, 4, 5]) == [(3, 4, 5)]
    assert samples([[3, 4, 5], [0, 1, 2]]) == [(3, 4, 5), (0, 1, 2)]
    with pytest.raises(UserError, match="--samples takes several words, which a sweep would read"):
        samples([3, 4, 5], {"samples": ["0", "1", "2"]})


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({"colour": 3}, "xor_grokking.py has no option --colour"),
        ({"seed": "3:3"}, "--seed takes a range that is not empty, got 3:3"),
        ({"seed": "0:10000000000"}, "--seed takes a range of at most 1,000,000 numbers"),
        ({"jr": []}, "--jr takes at least one value"),
        ({"jr": [0, -1]}, "--jr takes a number of at least 0, got -1"),
        ({"cells": {"jr": 1}}, "cells takes a list of options for xor_grokking.py"),
        ({"cells": []}, "cells takes a list of options for xor_grokking.py"),
    ],
)
def test_bad_grids_are_named(grid, says):
    with pytest.raises(UserError, match=re.escape(says)):
        names(grid)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (xor_grokking, ["--jr", "0.5", "--full_dimension", "--seed", "3", "--name", "a name"]),
        (xor_grokking, ["--name=-a"]),
        (inhibiting_generalisation, ["--jr", "none"]),
        (linear_regions, ["--samples", "3", "4", "5"]),
    ],
)
def test_a_job_is_what_a_user_would_type(module, words):
    o = parse(module.Options, None, words)
    name, *again = Job(module.__name__, o).words()
    assert name == f"{module.__name__}.py"
    assert parse(module.Options, None, again) == o


def test_a_job_knows_the_folder_of_a_run_whose_steps_follow_from_its_epochs():
    words = ["--epochs", "3", "--points", "12", "--batch_size", "5"]
    o = parse(delayed_robustness.Options, None, words)
    assert "epochs=3" in o.run_name() and "steps=9" in Job("delayed_robustness", o).folder.name


def test_makes_what_is_missing_and_nothing_else(capsys):
    words = ["xor_grokking.py", *map(str, TINY), "--jr", "0", "1.0"]
    assert sweep.main([*words, "--seed", "0"]) == 0
    out, err = capsys.readouterr()
    folders = list(map(Path, out.splitlines()))
    assert len(folders) == 2
    assert re.findall(r"^\d of 2 runs", err, re.M) == ["1 of 2 runs", "2 of 2 runs"]
    before = {f: (f / "checkpoint.pt").stat().st_mtime_ns for f in folders}
    command = yaml.safe_load((folders[1] / "config.yaml").read_text())["provenance"]["command"]
    assert command == "python xor_grokking.py --steps 4 --p 60 --n 8 --width 6 --jr 1.0"
    assert xor_grokking.main([*command.split()[2:], "--out_dir", "alone"]) == 0
    assert metrics("runs", folders[1].name) == metrics("alone", folders[1].name)

    capsys.readouterr()
    words += ["--seed", "0:2", "--workers", "1"]
    assert sweep.main([*words, "--dry_run"]) == 0
    *commands, count, time = capsys.readouterr().out.splitlines()
    assert commands[1] == "python xor_grokking.py --steps 4 --seed 1 --p 60 --n 8 --width 6"
    assert len(commands) == 4 and count == "4 runs, 2 of them finished"
    assert re.fullmatch(r"estimated time: \d+ s, 1 at a time, by 2 finished runs", time), time

    (folders[1] / "figure.png").unlink()  # as when it was stopped before it was drawn
    assert sweep.main([*words, "--runs_per_process", "9"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert {f: (f / "checkpoint.pt").stat().st_mtime_ns for f in folders} == before
    assert (folders[1] / "figure.png").exists()


@pytest.mark.skipif(not Path("/proc").exists(), reason="children of a process are found in /proc")
def test_a_sweep_killed_outright_goes_on_to_the_same_numbers(tmp_path, capsys):
    words = ["xor_grokking.py", *map(str, TINY[:-1]), "4000", "--checkpoint_every", "0.05"]
    folder = Path("runs/xor_grokking/p=60,n=8,width=6,steps=4000")
    process = start("sweep.py", *words, folder=tmp_path)
    while process.poll() is None and not (folder / "checkpoint.pt").exists():
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    for child in children:
        os.killpg(int(child), signal.SIGKILL)
    process.communicate()
    assert len(children) == 1
    assert "finished" not in yaml.safe_load((folder / "config.yaml").read_text())["provenance"]
    assert sweep.main(words) == 0
    assert report.main(["runs"]) == 0
    assert capsys.readouterr().out.count("| finished |") == 1
    # The same in one go, and after a run that fails in the same process.
    in_the_way = Path(f"whole/xor_grokking/{folder.name},seed=1")
    in_the_way.mkdir(parents=True)
    (in_the_way / "notes.txt").write_text("not a run")
    shared = ["--seed", "1", "0", "--workers", "1", "--runs_per_process", "2"]
    assert sweep.main([*words, *shared, "--out_dir", "whole"]) == 1
    assert "notes.txt but no config.yaml" in capsys.readouterr().err.splitlines()[-2]
    assert metrics("runs", folder.name) == metrics("whole", folder.name)
    provenance = yaml.safe_load((folder / "config.yaml").read_text())["provenance"]
    assert provenance["continued"][0]["at_step"] > 0


PROBE = """
import os, signal, sys, time
from pathlib import Path
what = sys.argv[-1]
folder = Path("runs/probe") / what
folder.mkdir(parents=True)
def stopped(number, frame):
    (folder / "saved").touch()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stopped)
signal.signal(signal.SIGINT, stopped)
(folder / "device").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
(folder / "threads").write_text(os.environ["OMP_NUM_THREADS"])
time.sleep({"long": 60}.get(what, 0.3))
if what == "lost":
    os.kill(os.getpid(), 9)
if what == "failed":
    sys.exit("its last words")
"""


def probes(*given, **options):
    return [Job("probe", xor_grokking.Options(name=name, **options)) for name in given]


def test_processes_get_their_devices_and_failures_their_words(tmp_path, monkeypatch, capsys):
    (tmp_path / "probe.py").write_text(PROBE)
    monkeypatch.setattr(processes, "ROOT", tmp_path)
    jobs = probes("a", "lost", "b", "failed", "c")
    failed = processes.run_all(jobs, 0, ["GPU-1", "GPU-2"])
    devices = [(job.folder / "device").read_text() for job in jobs]
    assert devices[:2] == ["GPU-1", "GPU-2"] and set(devices) == {"GPU-1", "GPU-2"}
    assert {(job.folder / "threads").read_text() for job in jobs} == {"1"}
    assert failed == ["runs/probe/lost: killed", "runs/probe/failed: its last words"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert re.fullmatch(r"1 of 5 runs, about \d+ s left: .*", lines[0]), lines


def when_there(path, call):
    """Calls from another thread as soon as a path is there."""

    def wait():
        while not Path(path).exists():
            time.sleep(0.005)
        call()

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_runs_and_begins_no_other(tmp_path, monkeypatch, number):
    (tmp_path / "probe.py").write_text(PROBE)
    monkeypatch.setattr(processes, "ROOT", tmp_path)
    when_there("runs/probe/long/threads", lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match="every run is saved, and the same command") as stop:
        processes.run_all(probes("long", "next"), 0, [None])
    assert stop.value.exit_code == 128 + number
    assert Path("runs/probe/long/saved").exists() and not Path("runs/probe/next").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_stops_a_process_of_several_runs(capsys):
    words = ["xor_grokking.py", *map(str, TINY[:-1]), "1000000", "--seed", "0", "1",
             "--runs_per_process", "2", "--workers", "1"]  # fmt: skip
    folder = "runs/xor_grokking/p=60,n=8,width=6,steps=1000000"
    when_there(f"{folder}/metrics.csv", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert sweep.main(words) == 128 + signal.SIGTERM
    assert "failed" not in capsys.readouterr().err
    assert Path(folder, "checkpoint.pt").exists() and not Path(f"{folder},seed=1").exists()


def test_a_worker_that_dies_takes_one_run_with_it(tmp_path, monkeypatch):
    # The second run of the first process kills it; a second process makes what is left.
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import runpy, os\n"
        "def run_path(path, run_name):\n"
        "    import sys\n"
        "    if 'lost' in sys.argv: os.kill(os.getpid(), 9)\n"
        "runpy.run_path = run_path\n"
    )
    failed = processes.run_all(probes("a", "lost", "b", "c"), 0, [None], runs_per_process=4)
    assert failed == ["runs/probe/lost: killed"]


@pytest.mark.parametrize(
    ("visible", "per_device", "workers", "expected"),
    [
        (None, 1, None, ["0", "1", "2"]),
        (None, 2, None, ["0", "1", "2", "0", "1", "2"]),
        (None, 2, 4, ["0", "1", "2", "0"]),
        ("5,GPU-8a,7", 1, None, ["5", "GPU-8a", "7"]),
    ],
)
def test_a_process_for_each_gpu(monkeypatch, visible, per_device, workers, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    else:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert processes.places(probes("a"), workers, per_device) == expected
    assert processes.places(probes("a", device="cuda:1"), workers, 1) == [None]
    assert processes.places(probes("a", device="cpu"), 2, per_device) == [None, None]
    assert len(processes.places(probes("a", device="cpu"), None, 1)) == processes.cores()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.py"], "there is no script nowhere.py"),
        (["report.py"], "report.py makes no runs"),
        (["sweep.py"], "sweep.py makes no runs"),
        (["nowhere.yaml"], "a grid is a script or a YAML file; nowhere.yaml: No such file"),
        (["numbers.yaml"], "numbers.yaml should hold options with the name of a `script`"),
        (["twice.yaml"], "the grid holds default of xor_grokking.py twice"),
        (["xor_grokking.py", "more.py"], "takes one script or file, got more.py too"),
        (["xor_grokking.py", "--colour", "red"], "has no option --colour"),
        (["xor_grokking.py", "--config", "a.yaml"], "--config is for one run; a sweep takes"),
        (["xor_grokking.py", "--seed", "1:1"], "--seed takes a range that is not empty"),
        (["xor_grokking.py", "--seed", "0:10001"], "this would make 10,001 runs, more than 10,000"),
        (["xor_grokking.py", "--seed", "0:200000", "--width", "1:200000"], "39,999,800,000 runs"),
        (["delayed_robustness.py", "--attack", "none", "--attack_points", "5"], "with --attack"),
        (["modular_addition.py", "--trainable_unembedding"], "goes with --fixed_embedding"),
        (["spectral_shift.py", "--permuted_torus"], "goes with --laplacian_penalty"),
        (["accelerating_grokking.py", "--jr_fraction", "0.5"], "goes with --jr"),
        (
            ["modular_addition.py", "--heads", "3"],
            "--heads takes a divisor of --d_model 128, got 3",
        ),
        (["xor_grokking.py", "--device", "cuda:9"], "--device takes one of"),
        (["xor_grokking.py", "--workers", "0"], "--workers takes a whole number of at least 1"),
        (["xor_grokking.py", "--workers", "99999999"], "of at most 10,000"),
        (["xor_grokking.py", "--per_device", "x"], "--per_device takes a whole number"),
        (["xor_grokking.py", "--runs_per_process", "0"], "--runs_per_process takes a whole"),
        (["xor_grokking.py", "--cluster", "pbs"], "--cluster takes one of slurm"),
        (["xor_grokking.py", "--partition", "gpu"], "--partition goes with --cluster slurm"),
        (["xor_grokking.py", "--cluster", "slurm", "--time", "-1"], "--time takes a whole number"),
        (["xor_grokking.py", "--cluster", "slurm", "--gpus", "-1"], "--gpus takes a whole number"),
        (["xor_grokking.py", "--cluster", "slurm", "--workers", "2"], "--workers does not go with"),
    ],
)
def test_bad_calls_are_one_line(words, says, capsys):
    Path("numbers.yaml").write_text("[1, 2]")
    grid = {"script": "xor_grokking.py", "format": ["png", "pdf"]}
    Path("twice.yaml").write_text(yaml.safe_dump(grid))
    assert sweep.main(words) == 2
    complaint = capsys.readouterr().err
    assert says in complaint
    assert len(complaint.splitlines()) == 1
    assert not Path("runs").exists()


def test_slurm_needs_submitit_and_sbatch_and_runs_that_can_be_sent_again(monkeypatch, capsys):
    words = ["xor_grokking.py", "--cluster", "slurm"]
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert sweep.main(words) == 2
    assert "pip install -r requirements-cluster.txt" in capsys.readouterr().err
    monkeypatch.setattr("lab.bench.cluster.importlib.util.find_spec", lambda name: True)
    monkeypatch.setenv("PATH", "/nowhere")
    assert sweep.main(words) == 2
    assert "SLURM's sbatch, which is not here" in capsys.readouterr().err
    monkeypatch.setattr("lab.bench.cluster.shutil.which", lambda name: name)
    assert sweep.main([*words, "--overwrite"]) == 2
    assert "--overwrite does not go with --cluster" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_yes_allows_many_runs_and_help_tells_every_option(capsys):
    jobs = sweep.jobs_in([{"script": "xor_grokking.py", "seed": "0:10001"}], {}, sys.maxsize)
    assert len(jobs) == 10_001
    with pytest.raises(SystemExit):
        sweep.main(["--help"])
    told = capsys.readouterr().out
    for f in dataclasses.fields(sweep.Options):
        assert f"--{f.name}" in told
    for path in ROOT.glob("*.py"):  # whose options would never reach it
        own = set(re.findall(r"^    (\w+): .*= option\(", path.read_text(), re.M))
        assert path.name == "sweep.py" or own.isdisjoint(sweep.Options.__dataclass_fields__)


def test_a_range_in_a_file_is_no_time_of_day(tmp_path):
    (tmp_path / "grid.yaml").write_text("script: xor_grokking.py\nseed: 1:4\n")  # 64 to YAML 1.1
    jobs = sweep.jobs_in(sweep.grids_of(str(tmp_path / "grid.yaml")), {})
    assert [job.options.seed for job in jobs] == [1, 2, 3]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_committed_grid_can_be_made(path):
    content = yaml.safe_load(path.read_text())
    if isinstance(content, dict) and "script" not in content:
        pytest.skip("options of a single run")
    jobs = sweep.jobs_in(sweep.grids_of(str(path)), {})
    assert len(jobs) == {"table_1.yaml": 100}.get(path.name, len(jobs)) > 0
