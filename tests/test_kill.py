"""Every script, killed three times after a checkpoint and continued, ends as if it had not been."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from helpers import ROOT, TINY, write_cifar

FAST = ("xor_grokking", "accelerating_grokking")

# One process imports the script and forks: a run in one go, then one that kills itself with SIGKILL
# while the n-th of its writes is forced to the disk, n as listed, and at last one to the end.
PROGRAM = """
import importlib, json, os, signal, sys

script, words, kills = sys.argv[1], sys.argv[2].split(), json.loads(sys.argv[3])
main, honest = importlib.import_module(script).main, os.fsync


def attempt(name, at):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    writes = 0

    def fsync(descriptor):
        nonlocal writes
        writes += 1
        if writes == at:
            os.kill(os.getpid(), signal.SIGKILL)
        honest(descriptor)

    os.fsync = fsync
    os._exit(main([*words, "--name", name]))


print(json.dumps([attempt("whole", 0), *(attempt("cut", at) for at in (*kills, 0))]))
"""


def same(one, other):
    """Whether two checkpoints' contents are equal, bit by bit; NaN is itself."""
    if torch.is_tensor(one):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    "script",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in TINY],
)
def test_killed_and_continued_it_ends_as_if_it_had_not_been(script, tmp_path):
    write_cifar(tmp_path / "data", 12)
    words = f"{TINY[script]} --device cpu --checkpoint_every 0"
    if script != "circuit_efficiency":  # whose steps follow from its sizes
        words += " --steps 11"
    # A checkpoint is the second or third write, and each update makes two or three more.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, script, words, json.dumps([8, 8, 8])],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, -9, -9, -9, 0], done.stderr
    whole, cut = (tmp_path / "runs" / script / name for name in ("whole", "cut"))
    configs = [yaml.safe_load((f / "config.yaml").read_text()) for f in (whole, cut)]
    steps = [each["at_step"] for each in configs[1]["provenance"]["continued"]]
    assert len(steps) == 3 and 0 < steps[0] < steps[1] < steps[2]  # it went on, each time
    assert configs[0].get("results") == configs[1].get("results")
    assert (whole / "metrics.csv").read_bytes() == (cut / "metrics.csv").read_bytes()
    states = [torch.load(f / "checkpoint.pt", weights_only=True) for f in (whole, cut)]
    assert states[0]["finished"] and same(states[0]["state"], states[1]["state"])
    assert (cut / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert not list(cut.glob("*.tmp"))


def test_every_script_is_here():
    ours = {path.stem for path in Path(ROOT).glob("*.py") if "run = Run(" in path.read_text()}
    assert ours == set(TINY)
