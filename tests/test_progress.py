"""What a run says of itself: lines in a log, a bar in a terminal, and what came out."""

import io
import re
import sys
from dataclasses import dataclass

import pytest
import torch
from matplotlib.figure import Figure

from lab.bench import progress
from lab.bench.loop import training
from lab.bench.options import option, parse
from lab.bench.runs import Run
from lab.bench.shared import Shared


@dataclass
class Options(Shared):
    steps: int = option(400, "updates", least=0)
    num_logs: int = option(401, "measurements", least=2)


def learn(*words, die_at=None):
    """A network that memorises at step 5 and passes 0.85 on the test set at step 200."""
    run = Run("toy", parse(Options, None, [str(word) for word in words]))

    def measure(step):
        right = {"train_accuracy": step >= 5, "test_accuracy": 0.9 if step >= 200 else 0.5}
        return {"loss": 1 / (step + 1), **right}

    for step in training(run, measure, network=torch.nn.Linear(1, 1)):
        if step == die_at:
            raise RuntimeError("killed")
    run.save_figure(Figure())
    return run


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock of `progress` is a second later than the one before."""
    seconds = iter(range(10**6))

    class Clock:
        monotonic = staticmethod(lambda: float(next(seconds)))

    monkeypatch.setattr(progress, "time", Clock)


def test_a_log_says_where_the_run_is_every_so_often(clock, capsys):
    learn()
    lines = [line for line in capsys.readouterr().err.splitlines() if "left" in line]
    steps = [int(re.search(r"step (\d+) of 400 \(", line)[1]) for line in lines]
    assert steps == [10, 20, 40, 80, 140, 200, 260, 320, 380]  # an update a second
    assert lines[2].startswith(
        "default: step 40 of 400 (10.0%), loss 0.025, train accuracy 1, test accuracy 0.5, "
        "about 6 min left, until 20"
    )


def test_a_run_that_goes_on_estimates_from_its_own_updates(clock, capsys):
    with pytest.raises(RuntimeError, match="killed"):
        learn("--checkpoint_every", 0, die_at=300)
    capsys.readouterr()
    learn()
    first, line, *_ = capsys.readouterr().err.splitlines()
    assert first == "runs/toy/default: continuing after 300 updates"
    assert "step 310 of 400 (77.5%)" in line and "about 90 s left" in line


def test_a_terminal_has_a_bar_and_no_lines(clock, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    learn()
    assert "400/400" in terminal.getvalue()
    assert "left, until" not in terminal.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_is_quiet(clock, monkeypatch, terminal):
    said = io.StringIO()
    said.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", said)
    with pytest.raises(RuntimeError, match="killed"):
        learn("--quiet", "--checkpoint_every", 0, die_at=300)
    learn("--quiet")
    learn("--quiet")
    assert said.getvalue() == ""
    assert learn().folder.name == "default"  # the same run: not part of what names it


def test_the_end_says_what_came_out_and_whether_it_was_there_already(capsys):
    learn()
    time, events, end = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"400 steps, \d+ s of training", time)
    assert events == (
        "memorised at step 5 (train accuracy above 0.99), "
        "generalised at step 200 (test accuracy above 0.85), "
        "grokked never (test accuracy above 0.95)"
    )
    assert end == "at the end: loss 0.00249, train accuracy 1, test accuracy 0.9"
    learn()
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("already finished, figure drawn again; 400 steps, ")
    assert others == [events, end]
