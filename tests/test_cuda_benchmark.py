"""benchmarks/cuda.py with tiny sizes: a dry run on the CPU, and on a pretended device."""

import json
from pathlib import Path
from unittest import mock

import pytest
from pretended_cuda import Pretended, unsupported

from benchmarks import cuda

PARITY = "--samples 70 --test_samples 30 --n 12 --width 20"
SIZES = {
    "scripts": ["sparse_parity"],
    "speed": {"sparse_parity": (PARITY, "--jr 0.1")},
    "updates": 8,
    "each": 1,
    "product": 32,
    "processes": (),
    "several_steps": 20,
    "long": [f"sparse_parity.py --steps 20 --seed 0:2 --workers 1 {PARITY}"],
}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    for name in ("metric_panels", "level"):
        monkeypatch.setattr(f"lab.bench.plots.{name}", mock.MagicMock())  # takes a second


def rows_of(stage, device="cpu", code=0, **sizes):
    line = f"--stage {stage} --device {device} --out_dir tables --runs runs --seconds 60"
    assert cuda.main(line.split(), **{**SIZES, **sizes}) == code
    return json.loads(Path(f"tables/stage_{stage}.json").read_text())["rows"]


@pytest.mark.parametrize("stage", [1, 2])
def test_agreement_and_repetition(stage, capsys):
    rows = rows_of(stage)
    assert all(row["right"] and row["weights"] == 0 for row in rows)
    assert "the CPU against itself" in capsys.readouterr().out


@pytest.mark.skipif(
    unsupported() is not None, reason=f"no device can be pretended: {unsupported()}"
)
def test_a_captured_update_is_compared_with_an_eager_one():
    with Pretended() as device:
        (row,) = rows_of(2, "cuda")
        assert row["captured_is_eager"] and row["continued_is_whole"]
        assert device.graphs == 5  # two sizes of a batch whole and continued, one until then


def test_what_differs_is_told(monkeypatch):
    found = cuda.found
    monkeypatch.setattr(
        cuda, "found", lambda folder: (found(folder)[0], found(folder)[1] + moved(folder))
    )
    assert not any(row["right"] for row in rows_of(1, code=1))


def moved(folder):
    return 0.01 * ("cpu" in str(folder))


def test_an_update_is_timed_with_the_regulariser_and_without():
    ceiling, plain, regularised = rows_of(3)
    assert ceiling["tflops_float64"] > 0 and ceiling["gb_per_s"] > 0
    assert plain["over_plain"] == 1 and regularised["cpu_ms"] > plain["cpu_ms"]


@pytest.mark.slow
def test_long_runs_go_on_until_they_are_made():
    assert rows_of(4, seconds=2)[0]["there"] != "2 runs, 2 of them finished"
    assert rows_of(4, seconds=300)[0]["there"] == "2 runs, 2 of them finished"
    assert rows_of(3, processes=(2,))[-1]["updates_per_s"] > 0
