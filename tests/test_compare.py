"""`--compare`: several runs of a script in one figure."""

import importlib
from pathlib import Path

import pytest

from helpers import ROOT, run
from lab.compare import names, run_folder
from lab.errors import UserError

TINY = ("--p", 60, "--n", 8, "--width", 6, "--steps", 4)


@pytest.fixture
def two_runs(tmp_path):
    for jr in (0.0, 1.0):
        assert run("xor_grokking.py", *TINY, "--jr", jr, folder=tmp_path).returncode == 0
    return tmp_path


def test_draws_runs_by_folder_and_by_name(two_runs):
    plain, regularised = "p=60,n=8,width=6,steps=4", "p=60,n=8,width=6,jr=1.0,steps=4"
    ended = run(
        "xor_grokking.py", "--compare", f"runs/xor_grokking/{plain}", regularised, folder=two_runs
    )
    assert ended.returncode == 0, ended.stderr
    picture = two_runs / ended.stdout.strip()
    assert picture.name == f"{plain} against {regularised}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    # No third run was begun.
    assert len([p for p in (two_runs / "runs/xor_grokking").iterdir() if p.is_dir()]) == 2


def test_names_what_is_wrong(two_runs):
    ended = run("xor_grokking.py", "--compare", "nowhere", folder=two_runs)
    assert ended.returncode == 2
    assert "--compare takes a run's folder" in ended.stderr and "'nowhere'" in ended.stderr
    ended = run(
        "delayed_tasks.py", "--compare", *(two_runs / "runs/xor_grokking").iterdir(),
        folder=two_runs,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "--compare takes runs of delayed_tasks.py" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py") if path.name != "utils.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_it(script, capsys):
    assert importlib.import_module(script).main(["--compare", "nowhere"]) == 2
    complaint = capsys.readouterr().err
    assert "--compare takes a run's folder" in complaint
    assert f"its name in runs/{script};" in complaint
    assert not Path("runs").exists()


def test_folders_with_one_name_are_told_apart():
    assert names([Path("a/x/default"), Path("b/x/default")]) == ["a/x/default", "b/x/default"]
    assert names([Path("runs/s/one"), Path("results/s/two")]) == ["one", "two"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="--run takes a run's folder"):
        run_folder("--run", "missing", tmp_path)
