"""Circuit efficiency: the grid of cells, the crossing, and the command that users type."""

import csv
import signal

import numpy
import pytest
import yaml

import circuit_efficiency
from circuit_efficiency import Options, cells
from helpers import interrupt, run
from lab.measures.costs import crossing

TINY = ("--p", 5, "--width", 24, "--least_pairs", 6, "--most_pairs", 20, "--sizes", 3,
        "--seeds", 2, "--tolerance", 0.01)  # fmt: skip


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_crossing_is_interpolated_and_the_last_one_counts():
    pairs = numpy.array([100.0, 120.0, 160.0, 200.0])
    assert crossing(pairs, numpy.array([-3.0, -1.0, 3.0, 9.0])) == pytest.approx(130)
    assert crossing(pairs, numpy.array([-3.0, 1.0, -1.0, 1.0])) == pytest.approx(180)
    assert numpy.isnan(crossing(pairs, numpy.array([-3.0, -2.0, -1.0, -0.5])))
    assert numpy.isnan(crossing(pairs, numpy.array([1.0, 2.0, 3.0, 4.0])))


def test_cells_cover_the_grid_once():
    grid = cells(Options(least_pairs=10, most_pairs=30, sizes=3, seeds=2, seed=4))
    assert len(grid) == len(set(grid)) == 12
    assert {n for n, _, _ in grid} == {10, 20, 30} and {s for _, s, _ in grid} == {4, 5}


def test_a_killed_sweep_continues_bit_for_bit(tmp_path):
    whole = run("circuit_efficiency.py", *TINY, "--name", "whole", folder=tmp_path)
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / whole.stdout.splitlines()[-1]
    assert (folder / "figure.png").stat().st_size > 10_000
    table = rows(folder)
    assert len(table) == 12 and [int(row["step"]) for row in table] == list(range(1, 13))
    assert all(float(row["train_error"]) < 1e-12 for row in table)
    assert all(float(row["fall"]) <= 0.01 or float(row["time"]) >= 60 for row in table)
    # The order in which `tables` reads them.
    assert [row["pairs"] for row in table[:6:2]] == ["6.0", "13.0", "20.0"]
    assert [row["random_labels"] for row in table[:4]] == ["0.0", "1.0", "0.0", "1.0"]
    found = yaml.safe_load((folder / "config.yaml").read_text())["results"]
    assert len(found["critical_pairs"]) == 2

    words = ("circuit_efficiency.py", *TINY, "--name", "killed", "--checkpoint_every", 0)
    folder = folder.with_name("killed")
    killed = interrupt(*words, folder=tmp_path, run_folder=folder, rows=3, signal=signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL and len(rows(folder)) < 12
    again = run(*words, folder=tmp_path)
    assert again.returncode == 0 and "continuing after" in again.stderr
    assert (folder / "metrics.csv").read_bytes() == (
        folder.with_name("whole") / "metrics.csv"
    ).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--p", 21), "--p takes a prime number, got 21"),
        (("--most_pairs", 100), "--most_pairs takes more than --least_pairs"),
        (("--most_pairs", 529, "--width", 600), "--most_pairs takes less than all 529 pairs"),
        (("--width", 300), "--width takes at least the number of training pairs, 320"),
        (("--sizes", 300), "--sizes takes at most the 211 sizes"),
        (("--steps", 5), "--steps follows from --sizes and --seeds"),
        (("--p", 3, "--least_pairs", 1, "--most_pairs", 4, "--sizes", 2, "--width", 4,
          "--ridge", 0, "--seed", 3), "--ridge takes a number large enough"),
    ],
)  # fmt: skip
def test_bad_input(arguments, message, tmp_path, capsys):
    assert circuit_efficiency.main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
