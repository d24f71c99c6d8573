"""benchmarks/cuda.py with tiny sizes: a dry run on the CPU, and on a pretended device."""

import json
from pathlib import Path
from unittest import mock

import pytest
from pretended_cuda import Pretended, unsupported

from benchmarks import cuda
from benchmarks._cuda_runs import several

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


def test_a_script_that_fails_ends_no_stage(monkeypatch, capsys):
    monkeypatch.setattr("sparse_parity.train", mock.Mock(side_effect=RuntimeError("cuBLAS")))
    failed, right = rows_of(1, code=1, scripts=["sparse_parity", "accelerate"])[-2:]
    assert failed == {
        "script": "sparse_parity", "dtype": "float32", "error": "RuntimeError: cuBLAS",
        "right": False,
    }  # fmt: skip
    assert right["right"] and right["weights"] == 0
    assert "2 of 3 rows are not as they should be" in capsys.readouterr().out


def test_one_script_alone(capsys):
    (row,) = rows_of(2, scripts=["norm_minimisation", "sparse_parity"], only="sparse_parity")
    assert row["script"] == "sparse_parity"
    with pytest.raises(SystemExit):
        cuda.main(["--stage", "1", "--device", "cpu", "--only", "no_such"])
    assert "argument --only: takes" in capsys.readouterr().err


def test_several_processes_share_a_device_through_the_service(tmp_path, monkeypatch):
    control = tmp_path / cuda.MPS
    control.write_text(
        f'#!/bin/sh\necho "$@ $(cat)" $CUDA_MPS_PIPE_DIRECTORY >> {tmp_path}/asked\n'
    )
    control.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("benchmarks._cuda_runs.SWEEP", ("false",))
    o = mock.Mock(several_steps=2, device="cuda")
    with pytest.raises(SystemExit):
        next(several(o, 2, str(tmp_path / "runs"), shared=True))
    place = f"{tmp_path}/runs/cuda_mps_pipe_directory"
    assert (tmp_path / "asked").read_text().splitlines() == [f"-d  {place}", f" quit {place}"]


@pytest.mark.slow
def test_long_runs_go_on_until_they_are_made():
    assert rows_of(4, seconds=2)[0]["there"] != "2 runs, 2 of them finished"
    assert rows_of(4, seconds=300)[0]["there"] == "2 runs, 2 of them finished"
    assert rows_of(3, processes=(2,))[-1]["updates_per_s"] > 0
