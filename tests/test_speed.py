"""What makes updates fast changes no number, and is what it says."""

import importlib
import itertools
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.timing import Products, Timed, in_turns
from helpers import ROOT, code_of
from lab.bench.memory import keep_freed_memory
from lab.bench.seeds import generator
from lab.networks.modular_mlp import ModularMLP
from lab.networks.transformer import OneLayerTransformer

FAULTS = """
import resource, sys
from lab.bench.cli import script
if sys.argv[1] == "kept":
    script(lambda argv: None)([])
def step():
    blocks = [b"1" * 3_000_000 for _ in range(10)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of Linux's glibc")
def test_commands_do_not_fetch_freed_memory_anew():
    if not keep_freed_memory():
        pytest.skip("a C library without the setting")

    def pages(which):
        command = [sys.executable, "-c", FAULTS, which]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return int(done.stdout)

    assert pages("kept") < 100 < 10_000 < pages("given back")


def by_result_and_gradients(outputs, parameters):
    gradients = torch.autograd.grad(outputs.square().sum(), parameters)
    return [outputs.detach(), *gradients]


def test_additions_in_place_change_no_bit_of_a_transformer():
    f = OneLayerTransformer(12, 3, 11, 16, 4, 64, generator(0))
    end = torch.randn(50, 16, generator=generator(1))
    hidden = torch.relu(end @ f.mlp_in.T + f.mlp_in_bias)
    plain = (end + hidden @ f.mlp_out.T + f.mlp_out_bias) @ f.unembedding.T
    weights = [f.mlp_in, f.mlp_in_bias, f.mlp_out, f.mlp_out_bias, f.unembedding]
    for ours, theirs in zip(
        by_result_and_gradients(f._unembedded(end), weights),
        by_result_and_gradients(plain, weights),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_no_multiplication_by_one_changes_no_bit_of_the_mlp(alpha):
    f = ModularMLP(11, 16, alpha, generator(0)).float()
    pairs = torch.cartesian_prod(torch.arange(11), torch.arange(11))
    sums = torch.nn.functional.embedding_bag(pairs + f.offsets, f.rows, mode="sum")
    hidden = ((sums + f.first_bias) * f.scale).relu()
    plain = torch.nn.functional.linear(hidden, f.second, f.second_bias)
    weights = list(f.parameters())
    for ours, theirs in zip(
        by_result_and_gradients(f(pairs), weights),
        by_result_and_gradients(plain, weights),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_products_and_convolutions_are_counted_with_the_shape_of_the_largest():
    x, w, images = torch.ones(5, 4), torch.ones(3, 4, requires_grad=True), torch.ones(2, 4, 6, 6)
    with Products() as counted:
        (x @ w.T).sum().backward()  # a product forward, one backward
    assert counted.operations == 2 * 2 * 5 * 4 * 3
    assert counted.shape == (5, 4, 3)
    with Products() as counted:
        torch.nn.functional.conv2d(images, torch.ones(3, 4, 3, 3), padding=1)
    assert counted.shape == (2 * 36, 4 * 9, 3)
    assert counted.operations == 2 * 72 * 36 * 3
    assert counted.product()().shape == (72, 3)


def test_a_share_is_the_time_of_a_calls_products_over_its_own():
    x, w = torch.ones(5, 4), torch.ones(4, 3)
    ticks = itertools.count()  # every call lasts a second

    def call(times):
        for _ in range(times):
            x @ w

    calls = {times: partial(call, times) for times in (0, 1, 3)}
    timed = in_turns(calls, rounds=2, clock=partial(next, ticks))
    assert {times: (found.seconds, found.share) for times, found in timed.items()} == {
        0: (1, 0),
        1: (1, 1),
        3: (1, 3),
    }


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("benchmarks/[!_t]*.py")))
def test_a_benchmark_tells_what_it_does_and_refuses_what_it_does_not_take(name, capsys):
    benchmark = importlib.import_module(f"benchmarks.{name}")
    for word, code, said in (("--help", 0, benchmark.__doc__), ("--no_such", 2, "error: ")):
        with pytest.raises(SystemExit) as ended:
            benchmark.main([word])
        assert ended.value.code == code
        shown = "".join(capsys.readouterr())
        assert said in shown
        if word == "--help":
            arguments = re.split(r"\n  (?=\S)", shown.removeprefix(shown.partition(said)[0] + said))
            for argument in arguments[1:]:
                assert "(default:" in argument or argument.startswith(("-h,", "--stage"))


def test_a_benchmark_says_in_one_line_what_a_bad_value_should_be(capsys):
    modular_step = importlib.import_module("benchmarks.modular_step")
    for words, said in (
        ("--rounds 0", "argument --rounds: takes a whole number of at least 1, got '0'"),
        ("--rounds many", "argument --rounds: takes a whole number of at least 1, got 'many'"),
        ("--device abacus", "argument --device: takes one of auto, cpu"),
        ("--p 10", "prime"),
    ):
        code = code_of(modular_step.main, words.split())
        complaint = capsys.readouterr().err
        assert code == 2 and said in complaint and len(complaint.splitlines()) == 1


def test_costs_that_were_there_stay_until_all_are_measured(monkeypatch, capsys):
    methods, path = importlib.import_module("benchmarks.methods"), Path("made/costs.csv")
    measured, interrupted = [], True

    def costs(name):
        measured.append(name)
        if interrupted and len(measured) > 1:
            raise KeyboardInterrupt
        return {"adamw": Timed(0.01, 0.5), "sam": Timed(0.02, 0.5)}

    monkeypatch.setattr(methods, "costs", costs)
    path.parent.mkdir()
    path.write_text("before")
    assert methods.main([str(path.parent)]) == 130
    assert path.read_text() == "before" and len(list(path.parent.iterdir())) == 1
    interrupted = False
    assert methods.main([str(path.parent)]) == 0
    lines = path.read_text().splitlines()
    assert lines[0] == "task,method,milliseconds" and len(lines) == 1 + 2 * len(set(measured))
    assert lines[1:3] == [f"{measured[0]},adamw,1", f"{measured[0]},sam,2"]
    capsys.readouterr()
    assert code_of(methods.main, [str(path)]) == 2
    complaint = capsys.readouterr().err
    assert "argument folder: takes a folder to write to; made/costs.csv" in complaint
    assert complaint.count("\n") == 1
