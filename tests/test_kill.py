"""Every script, killed after a checkpoint and continued, ends as if it had not been."""

import json
import subprocess
import sys

import pytest
import torch
import yaml

from helpers import ROOT, TINY, write_cifar

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py") if "run = Run(" in path.read_text())

# One process imports the scripts and forks: a run in one go, then one that kills itself by SIGKILL
# while the n-th of its writes is forced to the disk, n as listed, and at last one to the end.
PROGRAM = """
import importlib, json, os, signal, sys

import torch

torch.optim.SGD([torch.zeros(1)])  # imports what would take every fork a second or two
honest = os.fsync


def attempt(main, words, name, at):
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
    os.dup2(2, 1)  # what it prints is no answer
    os._exit(main([*words, "--name", name]))


for line in sys.stdin:
    folder, script, words, kills = json.loads(line)
    os.chdir(folder)
    main = importlib.import_module(script).main
    codes = [attempt(main, words, "cut", at) for at in (*kills, 0)]
    print(json.dumps([attempt(main, words, "whole", 0), *codes]), flush=True)
"""


@pytest.fixture(scope="module")
def forks():
    """Asks that process for a script's exit codes."""
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip

        def codes(*asked):
            print(json.dumps(asked), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield codes


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
@pytest.mark.parametrize("kills", [[8], pytest.param([8, 8, 8], marks=pytest.mark.slow)])
@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_and_continued_it_ends_as_if_it_had_not_been(script, kills, forks, tmp_path):
    write_cifar(tmp_path / "data", 12)
    words = f"{TINY[script]} --device cpu --checkpoint_every 0"
    if script != "circuit_efficiency":  # whose steps follow from its sizes
        words += " --steps 11"
    # A checkpoint is the second or third write, and each update makes two or three more.
    codes = forks(str(tmp_path), script, words.split(), kills)
    assert codes == [0, *(-9 for _ in kills), 0]
    whole, cut = (tmp_path / "runs" / script / name for name in ("whole", "cut"))
    configs = [yaml.safe_load((f / "config.yaml").read_text()) for f in (whole, cut)]
    steps = [each["at_step"] for each in configs[1]["provenance"]["continued"]]
    assert len(steps) == len(kills) and steps[0] > 0
    assert steps == sorted(set(steps))  # it went on, each time
    assert configs[0].get("results") == configs[1].get("results")
    assert (whole / "metrics.csv").read_bytes() == (cut / "metrics.csv").read_bytes()
    states = [torch.load(f / "checkpoint.pt", weights_only=True) for f in (whole, cut)]
    assert states[0]["finished"] and same(states[0]["state"], states[1]["state"])
    assert (cut / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert not list(cut.glob("*.tmp"))
