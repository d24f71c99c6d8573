"""lab/: options, runs, training and seeds, on a network that trains in milliseconds."""

import csv
import dataclasses
import errno
import itertools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
import torch
import yaml

from lab.bench import cli, loop, runs
from lab.bench.errors import TrainingError, UserError
from lab.bench.files import read_metrics
from lab.bench.loop import training
from lab.bench.options import option, parse
from lab.bench.runs import Run
from lab.bench.seeds import generator
from lab.bench.shared import Shared
from lab.bench.snapshots import Snapshots, moments_of


@dataclass
class Options(Shared):
    width: int = option(3, "hidden units", least=1)
    lr: float = option(0.1, "learning rate", above=0)
    jr: float | None = option(0.0, "weight of the regulariser", least=0)
    kind: str = option("a", "which one", choices=("a", "b"))
    strength: int = option(1, "of kind b", least=1, needs="kind b")
    points: tuple[int, ...] = option((0, 1), "some points", least=0)
    speed: int = option(1, "of the flag", least=1, needs="flag")
    words: tuple[str, ...] = option((), "some words")
    secret: int = option(0, None, least=0, names_run=False)
    flag: bool = option(False, "whether")
    steps: int = option(20, "updates", least=0)


@pytest.fixture
def parsed():
    return lambda *words: parse(Options, "About.", [str(word) for word in words])


def toy(run, die_at=None, explode_at=None, stop=lambda row: False):
    """Trains a linear map on noisy data drawn in every update; may die or diverge on the way."""
    o = run.options
    model = torch.nn.Linear(o.width, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator(o.seed, "weights"))
    optimiser = torch.optim.Adam(model.parameters(), lr=o.lr)
    points = torch.randn(20, o.width, generator=generator(o.seed, "points"))
    batch, noise = run.batches(len(points), 8), run.generator("noise")
    snapshots = Snapshots()

    def measure(step):
        snapshots.first("begun", step, step > 0, model)
        return {"loss": model.weight.detach().square().sum(), "test_accuracy": model.bias.sum()}

    state = {"network": model, "optimiser": optimiser, "snapshots": snapshots}
    for step in training(run, measure, stop=stop, **state):
        if step == die_at:
            raise RuntimeError("killed")
        x = batch(points)
        x = x + torch.randn(x.shape, generator=noise)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        if step == explode_at:
            loss = loss * float("inf")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


# Options


def test_defaults_flags_and_types(parsed):
    o = parsed("--width", 5, "--lr", "1e-3", "--jr", "none", "--kind", "b", "--flag")
    assert (o.width, o.lr, o.jr, o.kind, o.flag, o.seed) == (5, 1e-3, None, "b", True, 0)
    assert o.run_name() == "width=5,lr=0.001,jr=None,kind=b,flag"
    assert parsed().run_name() == "default"
    assert (
        parsed("--device", "cpu", "--out_dir", "x", "--checkpoint_every", 1).run_name() == "default"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--width", "0"], "--width takes a whole number of at least 1, got '0'"),
        (["--width", "2.5"], "--width takes a whole number of at least 1, got '2.5'"),
        (["--width"], "--width takes a whole number of at least 1, got nothing"),
        (["--width", "3", "4"], "--width takes a whole number of at least 1, got 2 words, 3 4"),
        (["--width", ""], "--width takes a whole number of at least 1, got ''"),
        (["--width", "1e9"], "--width takes a whole number of at least 1, got '1e9'"),
        (["--width", "1000000001"], "of at least 1 and of at most 1,000,000,000, got '1000000001'"),
        (["--width", "9" * 20], "of at least 1 and of at most 1,000,000,000, got '9999"),
        (["--width", "9" * 5000], "of at least 1, got '9999"),
        (["--seed", "9" * 20], "at least 0 and of at most 9,007,199,254,740,992, got '9999"),
        (["--lr", "1" + "0" * 400], "--lr takes a number above 0, got '1000"),
        (["--points"], "--points takes a whole number of at least 0, got nothing"),
        (["--out_dir", ""], "--out_dir takes text, got ''"),
        (["--name", "two\nlines"], "--name takes text, or none, got 'two\\nlines'"),
        (["--name", b"\xff".decode(errors="surrogateescape")], "--name takes text, or none, got"),
        ([""], "unknown option ''; --help lists the options"),
        (["two\nlines"], "unknown option 'two lines'; --help"),
        (["--strength", "2"], "--strength goes with --kind b, which is not given"),
        (["--speed", "2"], "--speed goes with --flag, which is not given"),
        (["--config"], "--config takes"),
        (["--config", ""], "--config takes a YAML file of options; '': "),
        (["--config", "/dev/zero"], "'/dev/zero': it holds more than 1,000,000 bytes"),
        (["--config", "."], "--config takes a YAML file of options; '.': Is a directory"),
        (["--lr", "0"], "--lr takes a number above 0, got '0'"),
        (["--lr", "nan"], "--lr takes a number above 0"),
        (["--lr", "inf"], "--lr takes a number above 0"),
        (["--jr", "-1"], "--jr takes a number of at least 0, or none, got '-1'"),
        (["--kind", "c"], "--kind takes one of a, b, got 'c'"),
        (["--wid", "3"], "unknown option --wid 3"),
        (["--flag", "3"], "unknown option 3"),
        (["--num_logs", "1"], "--num_logs takes a whole number of at least 2"),
        (["--config", "no.yaml"], "no.yaml"),
    ],
)
def test_bad_flags_are_one_line_and_exit_code_2(parsed, capsys, words, says):
    with pytest.raises(SystemExit) as exit:
        parsed(*words)
    message = capsys.readouterr().err
    assert exit.value.code == 2
    assert message.count("\n") == 1
    assert says in message


# A kilobyte that would be written out in 10^15.
BOMB = ", ".join(["&a0 [1]", *(f"&a{i + 1} [{', '.join([f'*a{i}'] * 10)}]" for i in range(15))])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("widht: 3", "unknown option 'widht'"),
        ("width: zero", "--width takes a whole number of at least 1, got 'zero'"),
        ("width: null", "--width takes a whole number of at least 1, got None"),
        ("flag: 7", "--flag takes true or false, got 7"),
        ("width: true", "--width takes a whole number"),
        ("width: [", "--config takes a YAML file"),
        ("- 3", "--config takes a YAML file"),
        ("width: 3\nlr: 1.0\nwidth: 4", "width is given twice"),
        ("compare: default", "unknown option 'compare'"),
        ("3: 4", "unknown option 3"),
        ("? [a, b]\n: 4", "--config takes a YAML file"),
        ("width: {a: 1}", "--width takes a whole number of at least 1, got a dict"),
        ("points: [[1]]", "--points takes a whole number of at least 0, got a list"),
        ("points: []", "--points takes a whole number of at least 0, got nothing"),
        ("name: 2024-01-01", "--name takes text, or none, got a date"),
        ("name: 2024-13-01", "'o.yaml': month must be in 1..12"),
        ("width: 0x" + "f" * 5000, "--width takes a whole number of at least 1"),
        ("lr: " + "9" * 5000, "--config takes a YAML file"),
        ("[" * 5000, "--config takes a YAML file"),
        ("\x00\x01", "--config takes a YAML file"),
        (f"width: [{BOMB}]", "--width takes a whole number of at least 1, got a list"),
        ('out_dir: "a\\0b"', "--out_dir takes text, got 'a\\x00b'"),
    ],
)
def test_bad_files_are_one_line_and_exit_code_2(parsed, capsys, tmp_path, text, says):
    (tmp_path / "o.yaml").write_text(text)
    with pytest.raises(SystemExit) as exit:
        parsed("--config", "o.yaml")
    message = capsys.readouterr().err
    assert exit.value.code == 2
    assert message.count("\n") == 1
    assert says in message


def test_an_option_of_a_mode_is_taken_with_it_and_at_its_default(parsed):
    assert parsed("--strength", 2, "--kind", "b").strength == 2
    assert parsed("--flag", "--speed", 2).speed == 2
    assert parsed("--strength", 1).kind == "a"  # as a run's config.yaml has it


def test_flags_win_over_the_file_wherever_they_stand(parsed, tmp_path):
    (tmp_path / "o.yaml").write_text("width: 7\nlr: 1e-3\nflag: true\n")
    for words in (["--config", "o.yaml", "--width", 9], ["--width", 9, "--config=o.yaml"]):
        o = parsed(*words)
        assert (o.width, o.lr, o.flag) == (9, 1e-3, True)


def test_printed_configuration_can_be_given_back(parsed, capsys, tmp_path):
    with pytest.raises(SystemExit):
        parsed("--width", 9, "--jr", "none", "--flag", "--print_config")
    (tmp_path / "o.yaml").write_text(capsys.readouterr().out)
    assert parsed("--config", "o.yaml") == parsed("--width", 9, "--jr", "none", "--flag")


def test_help_names_every_option_with_its_default(parsed, capsys):
    with pytest.raises(SystemExit) as exit:
        parsed("--help")
    page = " ".join(capsys.readouterr().out.split())
    assert exit.value.code == 0
    for f in dataclasses.fields(Options):
        assert (f"--{f.name}" in page) == (f.metadata["help"] is not None)
        assert (f.metadata["help"] or "") in page
    assert "(default: 0.1)" in page


ACCOUNT = """Figure 0: what a toy does.

A long account of many words. Claim: it learns.

    python toy.py              # 1 min
    python toy.py --flag       # 2 min

More words. Verdict: results/README.md, section "Toys"; three seeds.
"""


def test_help_begins_with_usage_commands_and_options_and_links_to_the_account(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["toy.py"])
    with pytest.raises(SystemExit):
        parse(Options, ACCOUNT, ["--help"])
    page = capsys.readouterr().out
    head, *_, last = page.rstrip().split("\n\n")
    assert head.startswith("usage: python ") and head.endswith(".py [--option VALUE …]")
    order = [page.index(words) for words in ("Figure 0", "toy.py --flag", "--width N", "--quiet")]
    assert order == sorted(order)
    assert "A long account" not in page and "More words" not in page
    assert " ".join(last.split()).endswith(
        'README.md, results/README.md, section "Toys"; three seeds.'
    )


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps", "tpu"])
def test_a_device_that_is_not_there_is_named(parsed, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert parsed().torch_device().type == "cpu"
    with pytest.raises(UserError, match=f"--device takes one of auto, cpu .* '{device}'"):
        parsed("--device", device).torch_device()


def test_auto_prefers_cuda_then_mps_but_not_mps_in_float64(parsed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert parsed().torch_device().type == "mps"
    assert parsed("--dtype", "float64").torch_device().type == "cpu"
    with pytest.raises(UserError, match="float64"):
        parsed("--dtype", "float64", "--device", "mps").torch_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert parsed().torch_device().type == "cuda"


@pytest.mark.parametrize(
    "name", ["a/b", "..", "a\\b", "a:b", "a|b", "a?", "*", " ", "a.", "a" * 250]
)
def test_a_name_that_is_no_folder_name_is_refused(parsed, name):
    with pytest.raises(UserError, match="--name"):
        Run("toy", parsed("--name", name))


# Steps of measurement and seeds


@pytest.mark.parametrize(
    ("steps", "num_logs"), [(0, 64), (1, 2), (100, 2), (7, 3), (1000, 64), (36_000, 128)]
)
def test_log_steps_begin_at_zero_and_end_at_the_last(steps, num_logs):
    found = loop.log_steps(steps, num_logs)
    assert (found[0], found[-1]) == (0, steps)
    assert found == sorted(set(found))
    assert len(found) <= num_logs
    late = [b / a for a, b in itertools.pairwise(found) if a > steps / 10]
    if num_logs == 128:  # equal ratios, but for rounding
        assert max(late) / min(late) < 1.01


def test_generators_of_different_uses_and_seeds_are_independent():
    draws = {
        key: tuple(torch.randn(3, generator=generator(*key)).tolist())
        for key in [(0, "data"), (1, "data"), (0, "weights"), (0, "noise", 1), (0, "noise", 11)]
    }
    assert len(set(draws.values())) == 5
    assert tuple(torch.randn(3, generator=generator(0, "data")).tolist()) == draws[0, "data"]


# Runs


def files(folder):
    return {p.name for p in folder.iterdir() if p.name != ".lock"}


def test_a_run_makes_exactly_the_updates_asked_for(parsed):
    run = Run("toy", parsed("--steps", 12, "--num_logs", 5))
    counted = []
    for step in training(run, lambda step: {"loss": 0.0}):
        counted.append(step)
    assert counted == list(range(12))
    assert [row["step"] for row in run.rows] == loop.log_steps(12, 5)
    assert run.finished


def test_a_folder_holds_configuration_metrics_and_provenance(parsed):
    run = Run("toy", parsed("--width", 4))
    toy(run)
    run.store({"t_grok": 7})
    assert run.folder.as_posix() == "runs/toy/width=4"
    assert files(run.folder) == {"config.yaml", "metrics.csv", "checkpoint.pt"}
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert config["width"] == 4
    assert config["results"] == {"t_grok": 7}
    assert set(config["provenance"]) >= {"command", "commit", "device", "packages", "finished"}
    assert config["provenance"]["packages"]["torch"] == torch.__version__.split("+")[0]
    # It can be given back, to make the same run.
    again = parsed("--config", str(run.folder / "config.yaml"), "--out_dir", "again")
    assert again.run_name() == "width=4"
    with (run.folder / "metrics.csv").open() as file:
        header = next(csv.reader(file))
    assert header == ["step", "loss", "test_accuracy"]
    assert read_metrics(run.folder)["loss"].tolist() == [row["loss"] for row in run.rows]


@pytest.mark.parametrize("die_at", [0, 1, 7, 19])
@pytest.mark.parametrize("checkpoint_every", [0, 1000])
def test_resume_is_exact_wherever_it_died(parsed, die_at, checkpoint_every):
    whole = toy(Run("toy", parsed("--name", "whole")))
    words = ("--name", "cut", "--checkpoint_every", checkpoint_every)
    with pytest.raises(RuntimeError, match="killed"):
        toy(Run("toy", parsed(*words)), die_at=die_at)
    run = Run("toy", parsed(*words))
    assert run.step == (die_at if checkpoint_every == 0 else 0)
    cut = toy(run)
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.equal(one, other)
    metrics = [(run.folder.parent / n / "metrics.csv").read_bytes() for n in ("whole", "cut")]
    assert metrics[0] == metrics[1]
    if checkpoint_every == 0 and die_at:
        continued = yaml.safe_load((run.folder / "config.yaml").read_text())["provenance"]
        assert continued["continued"][0]["at_step"] == die_at


@pytest.mark.parametrize("torn", ["metrics.csv", "checkpoint.pt", "config.yaml"])
def test_a_write_that_is_cut_off_leaves_the_old_file(parsed, monkeypatch, torn):
    whole = Run("toy", parsed("--name", "whole"))
    toy(whole)
    calls, honest = [], os.fsync

    def dying(descriptor):
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        calls.append(name)
        if name == torn + ".tmp" and calls.count(name) == (1 if torn == "config.yaml" else 9):
            os.ftruncate(descriptor, 10)
            raise KeyboardInterrupt  # nothing in lab/ may catch it
        honest(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to see which file is written")
    monkeypatch.setattr(os, "fsync", dying)
    with pytest.raises(KeyboardInterrupt):
        toy(Run("toy", parsed("--name", "cut", "--checkpoint_every", 0)))
    monkeypatch.setattr(os, "fsync", honest)
    run = Run("toy", parsed("--name", "cut"))
    toy(run)
    assert (run.folder / "metrics.csv").read_bytes() == (whole.folder / "metrics.csv").read_bytes()
    assert files(run.folder) == {"config.yaml", "metrics.csv", "checkpoint.pt"}


def test_a_finished_run_is_not_trained_again(parsed):
    toy(Run("toy", parsed()))
    again = Run("toy", parsed())
    assert again.finished
    assert again.metrics()["step"][-1] == 20
    toy(again, die_at=0)  # no update is made, so that nothing dies


def test_a_run_killed_between_its_last_two_files_is_finished_by_the_same_command(parsed):
    toy(Run("toy", parsed()))
    config = Run("toy", parsed()).folder / "config.yaml"
    content = yaml.safe_load(config.read_text())
    seconds = content["provenance"].pop("training_seconds")
    del content["provenance"]["finished"]
    config.write_text(yaml.safe_dump(content))
    toy(Run("toy", parsed()), die_at=0)
    provenance = yaml.safe_load(config.read_text())["provenance"]
    assert provenance["training_seconds"] == seconds and "finished" in provenance


def test_a_finished_run_without_its_checkpoint_keeps_its_measurements(parsed):
    """As recorded runs are; it was trained anew, over them."""
    toy(Run("toy", parsed()))
    folder = Run("toy", parsed()).folder
    (folder / "checkpoint.pt").unlink()
    before = (folder / "metrics.csv").read_bytes()
    recorded = Run("toy", parsed())
    assert recorded.finished and recorded.metrics()["step"][-1] == recorded.step == 20
    with pytest.raises(UserError, match="without its checkpoint"):
        toy(recorded)
    with pytest.raises(UserError, match="without its checkpoint"):
        recorded.saved_state("network")
    assert (folder / "metrics.csv").read_bytes() == before
    for edited in (b"", b"loss\n1.0\n"):
        (folder / "metrics.csv").write_bytes(edited)
        with pytest.raises(UserError, match=r"metrics\.csv is not a table of numbers"):
            Run("toy", parsed())


def test_early_stop_ends_the_run_with_that_row(parsed):
    run = Run("toy", parsed("--steps", 200))
    toy(run, stop=lambda row: row["step"] >= 50)
    last = run.rows[-1]["step"]
    assert 50 <= last < 200
    again = Run("toy", parsed("--steps", 200))
    toy(again, die_at=last)  # finished is finished, updates left or not
    assert again.rows[-1]["step"] == last


@pytest.mark.parametrize("finished", [True, False])
def test_a_config_without_an_option_that_decides_is_refused(parsed, finished):
    """It may have been made by code of another default."""
    run = Run("toy", parsed("--name", "old"))
    if finished:
        toy(run)
    path = run.folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["lr"]
    path.write_text(yaml.safe_dump(config))
    before = path.read_bytes()
    for words in ((), ("--lr", 0.5)):
        with pytest.raises(UserError, match=r"lacks --lr.*--overwrite"):
            Run("toy", parsed("--name", "old", *words))
    assert path.read_bytes() == before


def test_saved_state_is_a_copy_on_the_cpu(parsed):
    """Else a run that has ended would change with what is trained on."""
    run = Run("toy", parsed())
    whole = torch.zeros(1000)
    part = torch.nn.Linear(2, 1)
    part.weight.data = whole[:2].view(1, 2)
    run.save(3, 0.0, {"part": part}, finished=True)
    whole.fill_(7)
    saved = run.saved_state("part")["weight"]
    assert saved.tolist() == [[0, 0]]
    assert saved.untyped_storage().nbytes() == 8  # and not all that it was a view of


def test_other_options_in_the_folder_are_never_overwritten_unasked(parsed):
    run = Run("toy", parsed("--name", "mine", "--lr", 0.5))
    toy(run)
    before = (run.folder / "metrics.csv").read_bytes()
    with pytest.raises(UserError, match=r"lr: 0.5 there, 0.1 here.*--overwrite"):
        Run("toy", parsed("--name", "mine"))
    toy(Run("toy", parsed("--name", "mine", "--overwrite")))
    assert (Run("toy", parsed("--name", "mine")).folder / "metrics.csv").read_bytes() != before


def test_overwrite_removes_what_the_run_wrote_and_nothing_else(parsed, capsys):
    run = Run("toy", parsed("--lr", 0.5, "--name", "mine"))
    toy(run)
    ours = ("figure.png", "figure.svg", "moment_begun.pt")
    theirs = {"my_notes.txt", "figure.ai", "metrics.csv.bak", "model.pt"}
    for name in (*ours, *theirs):
        (run.folder / name).write_text("years of work")
    (run.folder / "plots").mkdir()
    again = Run("toy", parsed("--name", "mine", "--overwrite"))
    assert again.step == 0
    assert files(run.folder) == {"config.yaml", "plots", *theirs}
    assert all((run.folder / name).read_text() == "years of work" for name in theirs)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("runs/toy/mine: --overwrite replaces config.yaml, ")
    assert all(name in said for name in ("checkpoint.pt", "metrics.csv", *ours))
    assert not any(name in said for name in theirs - {"metrics.csv.bak"})
    toy(again)
    assert Run("toy", parsed("--name", "mine")).finished


def test_a_folder_that_is_not_a_run_is_left_alone(parsed, tmp_path):
    folder = tmp_path / "runs/toy/default"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    for words in ([], ["--overwrite"]):
        with pytest.raises(UserError, match=r"thesis.txt.*not a run"):
            Run("toy", parsed(*words))
    assert (folder / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("damaged", ["checkpoint.pt", "config.yaml"])
@pytest.mark.parametrize("content", [b"", b"\x80\x02 no such thing"])
def test_damaged_files_are_named(parsed, damaged, content):
    toy(Run("toy", parsed()))
    folder = Run("toy", parsed()).folder
    (folder / damaged).write_bytes(content)
    with pytest.raises(UserError, match=rf"{damaged} is damaged.*--overwrite") as error:
        Run("toy", parsed())
    assert str(error.value).isprintable()  # without torch's advice, which is in colours
    toy(Run("toy", parsed("--overwrite")))


def other(content, **changes):
    return {**content, **changes}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: [1, 2], "it holds a list"),
        (lambda c: other(c, step="5"), "step missing or of another type"),
        (lambda c: {k: v for k, v in c.items() if k != "rows"}, "rows missing"),
        (lambda c: other(c, step=21), "it is of step 21, the run has 20"),
        (lambda c: other(c, step=-1), "it is of step -1"),
        (lambda c: other(c, rows=[3]), "its measurements differ"),
        (lambda c: other(c, rows=[{"step": 0, "loss": "a"}]), "its measurements are no numbers"),
        (lambda c: other(c, rows=[{"step": 9, "loss": 1.0}]), "or of later steps"),
        (lambda c: other(c, state={}), "lacks the state of network, optimiser, snapshots"),
        (lambda c: other(c, state=other(c["state"], network={})), "does not fit the network"),
        (lambda c: other(c, state=other(c["state"], network=[])), "does not fit the network"),
        (lambda c: other(c, state=other(c["state"], optimiser={})), "does not fit the optimiser"),
        (lambda c: other(c, state=other(c["state"], snapshots=3)), "does not fit the snapshots"),
    ],
)
def test_a_checkpoint_that_is_another_runs_is_refused_in_one_line(parsed, change, says):
    with pytest.raises(RuntimeError, match="killed"):
        toy(Run("toy", parsed("--checkpoint_every", 0)), die_at=5)
    path = Path("runs/toy/default/checkpoint.pt")
    torch.save(change(torch.load(path)), path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=says) as error:
        toy(Run("toy", parsed()))
    assert "runs/toy/default/checkpoint.pt" in str(error.value)
    assert "with --overwrite the run's own command starts it afresh" in str(error.value)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    toy(Run("toy", parsed("--overwrite")))


def test_a_checkpoint_of_other_shapes_is_refused(parsed):
    for name, width in (("mine", 3), ("wide", 4)):
        words = ("--checkpoint_every", 0, "--name", name, "--width", width)
        with pytest.raises(RuntimeError, match="killed"):
            toy(Run("toy", parsed(*words)), die_at=5)
    shutil.copy("runs/toy/wide/checkpoint.pt", "runs/toy/mine/checkpoint.pt")
    with pytest.raises(UserError, match=r"does not fit the network of this run \(other shapes\)"):
        toy(Run("toy", parsed("--name", "mine")))


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "checkpoint.pt"])
def test_a_full_disk_is_one_line_and_nothing_is_lost(parsed, monkeypatch, capsys, name):
    toy(Run("toy", parsed("--name", "whole")))
    words = ("--checkpoint_every", 0, "--name", "cut")
    honest, room = os.fsync, {"config.yaml": 0, "metrics.csv": 3, "checkpoint.pt": 9}[name]
    written = []

    def full(descriptor):
        written.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        if written.count(name + ".tmp") > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to see which file is written")
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))

    @cli.script
    def main(argv):
        toy(Run("toy", parsed(*words)))

    assert main([]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"runs/toy/cut/{name} cannot be written: No space left on device, " in said
    assert "kB are missing; what was there before is kept" in said
    folder = Path("runs/toy/cut")
    assert not list(folder.glob("*.tmp"))
    if name == "checkpoint.pt":
        assert torch.load(folder / name)["step"] == 8
    monkeypatch.setattr(os, "fsync", honest)
    assert main([]) == 0
    metrics = [(folder.parent / n / "metrics.csv").read_bytes() for n in ("whole", "cut")]
    assert metrics[0] == metrics[1]


def test_a_figure_that_cannot_be_written_is_one_line(parsed, capsys):
    run = Run("toy", parsed())
    toy(run)

    class Figure:
        def savefig(self, *_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

    @cli.script
    def main(argv):
        run.save_figure(Figure())

    assert main([]) == 1
    assert "figure.png cannot be written: No space left on device;" in capsys.readouterr().err
    assert files(run.folder) == {"config.yaml", "metrics.csv", "checkpoint.pt"}


@pytest.mark.skipif(sys.platform == "win32", reason="permissions")
def test_a_folder_that_is_read_only_is_named(parsed, monkeypatch):
    toy(Run("toy", parsed()))

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")  # root would not be refused

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match=r"--out_dir takes a folder .*default: Permission denied"):
        Run("toy", parsed())


def test_checkpoints_hold_no_code(parsed):
    run = Run("toy", parsed())
    toy(run)
    content = torch.load(run.folder / "checkpoint.pt", weights_only=True)
    assert set(content["state"]) == {"network", "optimiser", "snapshots"}


def test_a_run_begun_on_another_device_is_not_mixed(parsed):
    with pytest.raises(RuntimeError, match="killed"):
        toy(Run("toy", parsed("--checkpoint_every", 0)), die_at=5)
    path = Run("toy", parsed()).folder / "config.yaml"
    path.write_text(
        path.read_text()
        .replace("device: cpu,", "device: 'cuda:0,")
        .replace(" threads\n", " threads'\n")
    )
    with pytest.raises(UserError, match="began on cuda; continue it with --device cuda"):
        Run("toy", parsed())


def test_a_run_that_goes_on_elsewhere_says_so_and_keeps_both(parsed, capsys, monkeypatch):
    words = ("--checkpoint_every", 0)
    with pytest.raises(RuntimeError, match="killed"):
        toy(Run("toy", parsed(*words)), die_at=5)
    began = yaml.safe_load(Path("runs/toy/default/config.yaml").read_text())["provenance"]
    capsys.readouterr()
    Run("toy", parsed(*words))
    assert "warning" not in capsys.readouterr().err  # all is as it was

    assert began["packages"]["scipy"] != "absent"  # draws the leaderboard's trials
    now = {**began, "packages": {**began["packages"], "torch": "9.9", "matplotlib": "9.9"}}
    now["device"] = now["device"].replace("1 threads", "7 threads")
    monkeypatch.setattr(runs, "provenance", lambda device: now)
    run = Run("toy", parsed(*words))
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("runs/toy/default: warning: ")
    assert f"torch {began['packages']['torch']} there, 9.9 here" in said
    assert "matplotlib" not in said  # which changes no number
    assert f"device {began['device']} there, {now['device']} here" in said
    with pytest.raises(RuntimeError, match="killed"):
        toy(run, die_at=6)
    kept = yaml.safe_load((run.folder / "config.yaml").read_text())["provenance"]
    assert kept["device"] == began["device"] and kept["packages"] == began["packages"]
    here = kept["continued"][-1]
    assert (here["at_step"], here["device"], here["torch"]) == (5, now["device"], "9.9")
    assert "torch" not in kept["continued"][0]


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fcntl")
def test_two_processes_cannot_share_a_folder(parsed):
    lock = Run("toy", parsed()).folder / ".lock"
    Run("toy", parsed())  # the same process may
    words = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another process is working in runs/toy/default"):
            Run("toy", parsed())
        other.stdin.close()
    Run("toy", parsed())


def test_an_unwritable_folder_is_named(parsed, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out_dir takes a folder"):
        Run("toy", parsed("--out_dir", "file"))


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(parsed):
    words = ("--lr", 0.25, "--checkpoint_every", 0)
    run = Run("toy", parsed(*words))
    with pytest.raises(
        TrainingError, match=r"not finite after the update of step 7 with --lr 0.25; .* step 7"
    ):
        toy(run, explode_at=7)
    assert run.seconds > 0  # which accelerate.py stores with a run that diverged
    saved = torch.load(run.folder / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 7
    assert all(torch.isfinite(t).all() for t in saved["state"]["network"].values())
    assert Run("toy", parsed(*words)).step == 7


def test_metrics_are_written_once_a_second_and_with_the_checkpoint(parsed, monkeypatch):
    now = 100.0
    monkeypatch.setattr(runs.time, "monotonic", lambda: now)
    run = Run("toy", parsed())

    def written():
        return read_metrics(run.folder)["step"].tolist()

    for step in range(3):
        run.record(step, {"loss": 1.0})
    assert written() == [0]
    now += 1
    run.record(3, {"loss": 1.0})
    assert written() == [0, 1, 2, 3]
    run.record(4, {"loss": 1.0})
    run.save(4, 0.0, {}, finished=False)
    assert written() == [0, 1, 2, 3, 4]


def test_a_reader_that_has_seen_enough_ends_a_command_quietly(tmp_path):
    (tmp_path / "talks.py").write_text(
        "from lab.bench.cli import script\n\n\n"
        "@script\n"
        "def main(argv):\n"
        "    for _ in range(100_000):\n"
        "        print('a line')\n\n\n"
        "raise SystemExit(main())\n"
    )
    words = f"{sys.executable} talks.py | head -1; echo ${{PIPESTATUS[0]}}"
    root = Path(__file__).resolve().parent.parent
    ended = subprocess.run(
        ["bash", "-c", words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert ended.stdout == "a line\n141\n"
    assert not ended.stderr


def test_commands_count_denormal_numbers_as_zero():
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot")
    torch.set_flush_denormal(False)
    products = []

    @cli.script
    def main(argv):
        products.append(torch.full((64,), 1e-39) * 0.5)

    try:
        assert (torch.full((64,), 1e-39) * 0.5 > 0).all()
        assert main([]) == 0
        assert (products[0] == 0).all()
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize(
    "size",
    [
        lambda: torch.zeros(10**14),
        lambda: torch.zeros(10**10, 10**10),
        lambda: numpy.ones(10**14),
        lambda: torch.zeros(10**20),
        lambda: torch.zeros(3).add_(1, alpha=1e300),
    ],
)
def test_sizes_that_no_memory_holds_are_one_line(size, capsys):
    @cli.script
    def main(argv):
        size()

    assert main(["--seed", "3", "--p=1000000000", "--flag", "--name", "a", "--lr", "0.1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "error: no memory or number is large enough for --p 1000000000, --seed 3 (" in said


def test_other_errors_keep_their_traceback():
    @cli.script
    def main(argv):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError):
        main([])


def test_an_output_that_cannot_be_written_is_one_line():
    if not Path("/dev/full").exists():
        pytest.skip("needs a device that is always full")
    program = (
        "from lab.bench.cli import script\n"
        "@script\n"
        "def main(argv): print('a line')\n"
        "raise SystemExit(main())\n"
    )
    root = Path(__file__).resolve().parent.parent
    with Path("/dev/full").open("w") as disk:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            cwd=root,
            stdout=disk,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ended.returncode == 1
    assert ended.stderr == "-c: error: the output: No space left on device\n"


def test_commands_turn_errors_into_exit_codes(capsys):
    for error, code in ((UserError("bad"), 2), (TrainingError("nan"), 1), (None, 0)):

        @cli.script
        def main(argv, error=error):
            if error:
                raise error

        assert main([]) == code
        assert capsys.readouterr().err.count("\n") == (error is not None)


# What an update draws, and what is kept


def test_draws_depend_on_seed_use_and_step_alone(parsed):
    run = Run("toy", parsed("--steps", 6, "--name", "one"))
    batch, one, other = run.batches(10, 4), run.generator("one"), run.generator("other", 3)
    seen = {}
    for step in training(run, lambda step: {}):
        assert batch(torch.arange(10)).tolist() == torch.arange(10)[batch.rows].tolist()
        seen[step] = (batch.rows.tolist(), torch.rand(2, generator=one).tolist())
        assert torch.rand(2, generator=other).tolist() != seen[step][1]
    assert sorted(point for step in range(3) for point in seen[step][0]) == list(range(10))
    expected = torch.rand(2, generator=generator(0, "one", 5)).tolist()
    assert seen[5][1] == expected  # whatever was drawn before
    batch.at(2)
    assert batch.rows.tolist() == seen[2][0]


def test_fixed_and_whole_batches(parsed):
    run = Run("toy", parsed())
    points = torch.arange(10)
    fixed, whole = run.batches(10, 4, "fixed"), run.batches(10)
    assert fixed.epoch_length == 3
    for step, rows in enumerate(([0, 1, 2, 3], [4, 5, 6, 7], [8, 9]) * 2):
        fixed.at(step)
        whole.at(step)
        assert fixed(points).tolist() == rows
        assert whole(points).tolist() == points.tolist()


def test_snapshots_are_kept_once_and_survive(parsed):
    model = toy(Run("toy", parsed()))
    run = Run("toy", parsed())
    moments = moments_of(run.folder)
    assert set(moments) == {"begun", "last"}
    assert moments["begun"].step == 1
    assert moments["last"].step == 20
    assert torch.equal(moments["last"].kept["weight"], model.weight)
    assert not torch.equal(moments["begun"].kept["weight"], model.weight)


def test_moments_of_unfinished_or_other_runs_are_refused(parsed):
    with pytest.raises(RuntimeError, match="killed"):
        toy(Run("toy", parsed("--checkpoint_every", 0)), die_at=5)
    with pytest.raises(UserError, match="is not finished"):
        moments_of("runs/toy/default")
    with pytest.raises(UserError, match="cannot be read"):
        moments_of("runs/toy/none")
