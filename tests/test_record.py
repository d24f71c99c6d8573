"""What is copied into the repository."""

import importlib.util
import subprocess
from pathlib import Path

import pytest
import torch

import inhibiting_generalisation
import order_parameters
from lab.bench import provenance, record
from lab.bench.files import read_metrics
from lab.bench.snapshots import moments_of

TINY = ["--dataset", "digits", "--points", "60", "--width", "12", "--batch_size", "24"]
TINY += ["--device", "cpu", "--steps", "12"]


def one_run(*words):
    assert inhibiting_generalisation.main([*TINY, "--name", "one", *words]) == 0
    return Path("runs/inhibiting_generalisation/one")


def test_a_recorded_run_is_rounded_and_can_be_rounded_again(capsys):
    folder = one_run()
    (folder / "spectral").mkdir()
    for step in (0, 90, 100):
        text = f"step,share\n1234567,{(step + 1) / 3!r}\n"
        (folder / f"spectral/step{step}.csv").write_text(text)
    assert record.main([str(folder), "--weights", "--pictures"]) == 0
    target = Path("results/inhibiting_generalisation/one")
    assert capsys.readouterr().out.splitlines()[-1] == str(target)
    for column, values in read_metrics(folder).items():
        for kept, value in zip(read_metrics(target)[column], values, strict=True):
            assert abs(kept - value) <= 5.1e-6 * abs(value)
    longest = max(len(word) for word in (target / "metrics.csv").read_text().split(",")[20:])
    assert longest <= len("-1.23456e-100\n1")
    assert (target / "config.yaml").read_bytes() == (folder / "config.yaml").read_bytes()
    assert (target / "figure.png").exists()
    tables = {path.name: path.read_text() for path in target.glob("spectral/*")}
    expected = {"step0.csv": "0.333333", "step100.csv": "33.6667"}  # a step loses no digit
    assert tables == {name: f"step,share\n1234567,{share}\n" for name, share in expected.items()}
    kept, recorded = moments_of(folder), moments_of(target)
    assert list(kept) == list(recorded)  # in the order of training
    assert "last" in kept
    assert recorded["last"].step == 12
    for name, weight in kept["last"].kept.items():
        assert torch.equal(recorded["last"].kept[name], weight.float())
    before = (target / "metrics.csv").read_bytes()
    assert record.main([str(target)]) == 0
    assert (target / "metrics.csv").read_bytes() == before


def test_states_that_are_single_tensors_are_recorded_as_well():
    words = ["--p", "7", "--width", "8", "--steps", "30", "--device", "cpu", "--name", "one"]
    assert order_parameters.main(words) == 0
    folder = Path("runs/order_parameters/one")
    assert record.main([str(folder), "--weights"]) == 0
    kept, recorded = (moments_of(f) for f in (folder, Path("results/order_parameters/one")))
    assert kept and list(kept) == list(recorded)
    assert torch.is_tensor(kept["0"].kept)
    assert torch.equal(recorded["0"].kept, kept["0"].kept.float())


def test_what_is_no_finished_run_is_refused(capsys, tmp_path):
    folder = one_run()
    picture = folder.parent / "figure_7.png"
    picture.touch()
    assert record.main([str(folder), str(picture), str(tmp_path)]) == 2
    assert f"{tmp_path} is not a finished run" in capsys.readouterr().err
    assert not Path("results").exists()  # all or none
    assert record.main([str(picture), str(folder)]) == 0  # as runs/*/* gives them


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: "", "empty, cut or damaged after 0 rows"),
        (lambda text: text[:-2], "cut or damaged after 7 rows"),  # digits of the last number
        (lambda text: text[: text.rindex(",")] + "\n", "cut or damaged after 6 rows"),
        (lambda text: "".join(text.splitlines(True)[:-1]), "has 6 of 7 rows; the run's own com"),
    ],
)
def test_a_table_that_is_not_whole_is_refused(damage, says, capsys):
    folder = one_run("--num_logs", "8")
    path = folder / "metrics.csv"
    path.write_text(damage(path.read_text()))
    assert record.main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"record: error: {path} ") and says in line
    assert not Path("results").exists()


def test_a_commit_says_when_the_code_differs_from_it(tmp_path):
    """Code that is changed or new, but no results, with which a second run would be marked."""

    def git(*words):
        subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)

    copy = tmp_path / "lab/bench/provenance.py"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(Path(provenance.__file__).read_bytes())
    (tmp_path / "results").mkdir()
    (tmp_path / "results/README.md").write_text("none yet\n")
    git("init")
    git("add", ".")
    git("-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "-m", "first")
    spec = importlib.util.spec_from_file_location("copied", copy)
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    (tmp_path / "results/README.md").write_text("one run\n")
    (tmp_path / "notes.txt").write_text("no code\n")
    commit = copied.provenance(torch.device("cpu"))["commit"]
    assert len(commit) == 40
    (tmp_path / "new.py").write_text("")
    assert copied.provenance(torch.device("cpu"))["commit"] == f"{commit}+changes"
    (tmp_path / "new.py").unlink()
    with copy.open("a") as code:
        code.write("# changed\n")
    assert copied.provenance(torch.device("cpu"))["commit"] == f"{commit}+changes"
