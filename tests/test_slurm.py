"""sweep.py --cluster slurm, on a real SLURM: `make slurm` brings one up and runs these."""

import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

import sweep
from helpers import run, start

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(shutil.which("sbatch") is None, reason="no SLURM here; see `make slurm`"),
]
TINY = ["xor_grokking.py", "--p", "60", "--n", "8", "--width", "6", "--device", "cpu"]
ON_SLURM = ["--cluster", "slurm"]


def queue():
    """Ids of jobs that have not ended."""
    line = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()


def emptied():
    """Whether the queue gets empty, without jobs that only have to be cleared away."""
    end = time.monotonic() + 30
    while queue() and time.monotonic() < end:
        time.sleep(0.5)
    return not queue()


def metrics(folder):
    return {f.parent.name: f.read_bytes() for f in Path(folder).glob("*/*/metrics.csv")}


def provenance(folder):
    return yaml.safe_load(Path(folder, "config.yaml").read_text())["provenance"]


@pytest.mark.parametrize("per_process", [1, 2])
def test_an_array_gives_what_this_machine_gives_and_outlives_a_failure(capsys, per_process):
    words = [*TINY, "--steps", "40", "--jr", "0", "1.0", "--seed", "0:2"]
    in_the_way = Path("runs/xor_grokking/p=60,n=8,width=6,steps=40,seed=5")
    in_the_way.mkdir(parents=True)
    (in_the_way / "notes.txt").write_text("not a run")
    several = ["--runs_per_process", str(per_process)]
    assert sweep.main([*words, *ON_SLURM, "--time", "5", *several]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4
    assert len(re.findall(r"^\d of 4 runs", err, re.M)) == 4
    assert len(list(Path("runs/.slurm").glob("*_submitted.pkl"))) == 4 / per_process
    assert emptied() and "sacct" not in err
    assert sweep.main([*words, "--out_dir", "local", "--runs_per_process", "4"]) == 0
    assert metrics("runs") == metrics("local") and len(metrics("runs")) == 4
    assert sweep.main([*words, *ON_SLURM, "--seed", "0", "5", "--jr", "0"]) == 1
    out, err = capsys.readouterr()
    assert "notes.txt but no config.yaml" in err.splitlines()[-2]
    assert err.splitlines()[-1].endswith("1 of 2 runs failed")


def test_a_run_cut_by_its_time_limit_is_finished_by_the_next_job(tmp_path, capsys):
    speed = ["--steps", "3000", "--num_logs", "2", "--out_dir", "speed"]
    assert sweep.main([*TINY, *speed, "--workers", "1"]) == 0
    seconds = provenance(capsys.readouterr().out.strip())["training_seconds"] / 3000
    # More than a job of two minutes can make before its signal.
    words = [*TINY, "--steps", str(int(110 / seconds)), "--jr", "0"]
    local = start("sweep.py", *words, "--out_dir", "local", "--workers", "1", folder=tmp_path)
    over = threading.Event()

    def send_at_once():  # what is sent again waits for two minutes else
        while not over.wait(5):
            for name in queue():
                line = ["scontrol", "update", f"JobId={name}", "StartTime=now"]
                subprocess.run(line, capture_output=True)

    threading.Thread(target=send_at_once, daemon=True).start()
    assert sweep.main([*words, *ON_SLURM, "--time", "2"]) == 0
    over.set()
    (folder,) = map(Path, capsys.readouterr().out.splitlines())
    log = next(Path("runs/.slurm").glob("*_log.out")).read_text()
    cuts = log.count("Job has timed out")
    saved = [each["at_step"] for each in provenance(folder)["continued"]]
    with capsys.disabled():
        print(f"\ntime limits: {cuts}; continued after {saved} of {words[-3]} updates")
    assert cuts >= 1 and saved == sorted(saved) and saved[-1] > 0
    local.communicate(timeout=600)
    assert local.returncode == 0
    assert metrics("runs") == metrics("local")


def test_jobs_outlive_a_sweep_that_is_killed_and_save_when_it_is_stopped(tmp_path):
    words = ["sweep.py", *TINY, "--steps", "100000000", "--checkpoint_every", "10000", *ON_SLURM]
    folder = Path("runs/xor_grokking/p=60,n=8,width=6,steps=100000000")
    killed = start(*words, folder=tmp_path)
    while killed.poll() is None and not (folder / "metrics.csv").exists():
        time.sleep(0.1)
    killed.kill()
    killed.communicate()
    (job,) = queue()
    stopped = start(*words, folder=tmp_path)
    assert "estimated time" in stopped.stderr.readline()
    assert stopped.stderr.readline().startswith("sending 0 jobs to SLURM, where 1 of this")
    assert queue() == [job] and stopped.poll() is None
    assert not (folder / "checkpoint.pt").exists()
    stopped.send_signal(signal.SIGTERM)
    _, err = stopped.communicate(timeout=120)
    assert stopped.returncode == 128 + signal.SIGTERM, err
    assert "every run is saved" in err
    assert (folder / "checkpoint.pt").exists() and not queue()


def test_a_job_that_is_cancelled_is_listed_with_its_last_words(tmp_path):
    words = ["sweep.py", *TINY, "--steps", "100000000", *ON_SLURM]
    process = start(*words, folder=tmp_path)
    while process.poll() is None and not list(Path("runs").glob("*/*/metrics.csv")):
        time.sleep(0.1)
    subprocess.run(["scancel", *queue()], check=True)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.search(r"steps=100000000: slurmstepd.*CANCELLED", err.splitlines()[-2]), err


def test_what_slurm_refuses_is_one_line(tmp_path):
    done = run("sweep.py", *TINY, *ON_SLURM, "--partition", "nowhere", folder=tmp_path)
    assert done.returncode == 2
    assert "--cluster slurm: Batch job submission failed: Invalid partition" in done.stderr
    assert len(done.stderr.splitlines()) == 3, done.stderr  # after the estimated time
    assert not queue() and not list(Path("runs").glob("*/*/config.yaml"))
    assert sys.modules.get("submitit") is not None
