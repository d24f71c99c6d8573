"""report.py: runs of a script in one figure, and what is said of a bad call."""

import datetime
import errno
import importlib
import io
import itertools
import re
import time
import warnings
from pathlib import Path

import numpy
import pytest
import torch
import yaml

import report
from helpers import ROOT, run, start
from lab.bench import plots
from lab.bench.errors import UserError
from lab.bench.files import run_folder, short_names
from lab.bench.statistics import interval
from lab.reports import figure_6
from lab.reports._words import file_name
from lab.reports.runs import status, times

TINY = ("--p", 60, "--n", 8, "--width", 6, "--steps", 4)
SCRIPTS = [
    path.stem for path in sorted(ROOT.glob("*.py")) if path.stem not in ("utils", "report", "sweep")
]


@pytest.fixture
def two_runs(tmp_path):
    for jr in (0.0, 1.0):
        assert run("xor_grokking.py", *TINY, "--jr", jr, folder=tmp_path).returncode == 0
    return tmp_path


def test_compare_draws_runs_by_folder_and_by_name(two_runs):
    plain, regularised = "p=60,n=8,width=6,steps=4", "p=60,n=8,width=6,jr=1.0,steps=4"
    words = ("compare", "xor_grokking", f"runs/xor_grokking/{plain}", regularised)
    ended = run("report.py", *words, folder=two_runs)
    assert ended.returncode == 0, ended.stderr
    picture = two_runs / ended.stdout.strip()
    assert picture.name == f"{plain} against {regularised}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    ended = run("report.py", *words, "--name", "both", folder=two_runs)
    assert ended.stdout.strip() == "runs/xor_grokking/both.png"
    # No third run was begun.
    assert len([p for p in (two_runs / "runs/xor_grokking").iterdir() if p.is_dir()]) == 2


def test_a_dollar_in_a_folders_name_is_a_dollar():
    m = {"step": numpy.arange(3.0), "loss": numpy.arange(3.0)}
    runs = {"pay$x_{$5": m, "two": m}
    drawing = plots.metric_panels(runs, {"loss": ["loss"]}, "python x.py --out_dir '$x_{$5'")
    drawing.savefig(io.BytesIO())  # which read it as mathematics
    image = torch.zeros(1, 4, 4).expand(3, 4, 4)
    pictures = figure_6.image_rows({"$x_{$": [image]}, {}, "'$x_{$5'")
    pictures.savefig(io.BytesIO())


def legends(drawing):
    """Texts of each panel's legend, and of the figure's, which cover no panel and no other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*layout not applied")  # since panels collapse
        drawing.savefig(io.BytesIO())
    found = [*(axes.get_legend() for axes in drawing.axes), *drawing.legends]
    boxes = [legend.get_window_extent() for legend in found if legend]
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0
        assert box.x1 <= drawing.bbox.x1 and box.y1 <= drawing.bbox.y1
    panels = [axes.get_window_extent() for axes in drawing.axes]
    for one, other in itertools.combinations([*boxes, *panels], 2):
        assert not one.padded(-1).overlaps(other)
    return [[t.get_text() for t in legend.get_texts()] if legend else [] for legend in found]


@pytest.mark.parametrize("panels", [1, 3])
def test_a_legend_names_every_run_and_never_covers_the_panels(panels):
    m = {"step": numpy.arange(3.0), "loss": numpy.arange(3.0)}
    contents = {f"loss {i}": ["loss"] for i in range(panels)}
    *none, named = legends(plots.metric_panels({"_mine": m, "a,b": m}, contents, "python x.py"))
    assert none == [[]] * panels and [text.strip() for text in named] == ["_mine", "a, b"]
    both = {"loss": ["loss"], "both": ["loss", "step"]}
    drawing = plots.metric_panels({"one": m, "two": m}, both, "x", events={"at_one": 1})
    event = "at one at step 1"
    assert legends(drawing) == [[event], ["loss", "step"], ["one", "two"]]
    height = drawing.axes[0].get_window_extent().height
    plots.level(drawing.axes[0], 0.5, "a level")
    plots.level(drawing.axes[0], 1.5, "a higher one")
    assert legends(drawing)[0] == [event, "a level 0.5", "a higher one 1.5"]
    # The figure has grown instead of the panels shrinking.
    assert drawing.axes[0].get_window_extent().height == pytest.approx(height, rel=0.02)
    options = "dataset=digits,points=60,width=12,batch_size=24,clip=0.0,steps=12000,jr="
    many = {f"{options}{i}": m for i in range(12)}
    drawing = plots.metric_panels(many, contents, f"python report.py compare {' '.join(many)}")
    *inside, above = legends(drawing)
    assert inside == [[]] * panels
    assert [" ".join(text.split()) for text in above] == [run.replace(",", ", ") for run in many]
    shown = [line.get_color() for line in drawing.legends[0].get_lines()]
    assert len(numpy.unique(shown, axis=0)) == len(many)  # more than the palette has
    lines = [line.get_color() for line in drawing.axes[0].lines]
    numpy.testing.assert_array_equal(lines, shown)
    panel, legend = (a.get_window_extent() for a in (drawing.axes[0], drawing.legends[0]))
    assert panel.height > 1.5 * drawing.dpi and panel.y1 < legend.y0


def test_a_line_beneath_fits_whatever_the_width():
    drawing, _ = plots.panels(3, "")
    drawing.set_size_inches(5, 3)
    plots.say_beneath(drawing, f"python report.py figure_1 {200 * 'a'} {400 * 'b'}")
    drawing.savefig(io.BytesIO())
    box = drawing._supxlabel.get_window_extent()
    assert box.x0 > 0 and box.x1 < drawing.bbox.x1 and drawing.get_figheight() > 3


def test_compare_refuses_runs_of_another_script(two_runs, monkeypatch, capsys):
    monkeypatch.chdir(two_runs)
    folders = map(str, (two_runs / "runs/xor_grokking").iterdir())
    assert report.main(["compare", "sparse_parity", *folders]) == 2
    complaint = capsys.readouterr().err
    assert "compare takes runs of sparse_parity" in complaint
    assert len(complaint.splitlines()) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_can_be_compared(script, capsys):
    module = importlib.import_module(script)
    assert all(1 <= len(names) <= 4 for names in module.PANELS.values())
    assert report.main(["compare", script, "nowhere"]) == 2
    complaint = capsys.readouterr().err
    assert f"its name in runs/{script}; 'nowhere' holds none" in complaint
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["table_9"], "there is no report table_9; there are compare,"),
        (["compare"], "compare takes a script and its runs"),
        (["compare", "xor_grokking", "a", "--name", "a/b"], "--name takes a file's name"),
        (["compare", "utils", "a"], "utils makes no runs"),
        (["compare", "no_such", "a"], "there is no script no_such"),
        (["compare", "../evil", "a"], "there is no script ../evil"),
        (["table_1", "--out_dir", "nowhere"], "no finished run"),
    ],
)
def test_bad_calls_are_one_line(words, says, capsys):
    assert report.main(words) == 2
    complaint = capsys.readouterr().err
    assert says in complaint
    assert len(complaint.splitlines()) == 1


def test_every_report_is_listed_with_what_it_is(capsys):
    with pytest.raises(SystemExit):
        report.main(["--help"])
    listed = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}: " in listed for name in report.NAMES)


def test_runs_are_listed_with_status_and_events(two_runs):
    unfinished = two_runs / "runs/xor_grokking/begun"
    ended = run("xor_grokking.py", *TINY, "--name", "begun", folder=two_runs)
    assert ended.returncode == 0, ended.stderr
    config = (unfinished / "config.yaml").read_text()
    kept = [
        line
        for line in config.splitlines()
        if not line.strip().startswith(("finished:", "training_seconds:"))
    ]
    (unfinished / "config.yaml").write_text("\n".join(kept))
    listed = run("report.py", "runs", folder=two_runs).stdout.splitlines()[2:]
    cells = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in listed
    }
    assert cells["xor_grokking/begun"][:2] == ["stopped", "4 of 4 (100%)"]
    finished = cells["xor_grokking/p=60,n=8,width=6,steps=4"]
    assert finished[0] == "finished"


def test_long_names_of_pictures_differ(tmp_path):
    long = "x" * 150
    names = {file_name(f"{long}{i}") for i in range(3)}
    names |= {file_name("“" * 100)}
    assert len(names) == 4 and all(len(name.encode()) <= 120 for name in names)
    assert file_name("short") == "short"


def test_a_stopped_run_that_nobody_may_write_to_is_not_running(two_runs):
    folder = two_runs / "runs/xor_grokking/p=60,n=8,width=6,steps=4"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["provenance"]["finished"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))

    open_it = Path.open

    def read_only(path, mode="r", **others):
        if set(mode) & set("wa+"):
            raise OSError(errno.EROFS, "Read-only file system")
        return open_it(path, mode, **others)

    def not_ours(path, mode="r", **others):
        if path.name == ".lock":
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_it(path, mode, **others)

    for opened, says in ((read_only, "stopped"), (not_ours, "not finished")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "open", opened)
            assert status(folder, config) == says


@pytest.mark.parametrize("code", [errno.EACCES, errno.EAGAIN, errno.ENOLCK])
def test_a_lock_that_is_refused_is_anothers(tmp_path, monkeypatch, code):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / ".lock").touch()
    (tmp_path / "config.yaml").write_text("provenance: {device: cpu, command: ''}")

    def refuse(*given):
        raise OSError(code, "refused")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    says = "not finished" if code == errno.ENOLCK else "running"
    assert status(tmp_path, {"steps": 3}) == says


@pytest.mark.parametrize(
    "edited",
    [{}, {"started": "once"}, {"started": "2026-01-01"}, {"continued": [{"at_step": "x"}]},
     {"continued": []}, {"continued": 3}],
)  # fmt: skip
def test_a_run_that_goes_whose_start_is_unknown_has_no_end(tmp_path, monkeypatch, edited):
    monkeypatch.setattr("lab.reports.runs.status", lambda *_: "running")
    (tmp_path / "metrics.csv").touch()
    assert times(tmp_path, {"steps": 9, "provenance": edited}, 3)[1] == "unknown"
    began = datetime.datetime.now(datetime.UTC).isoformat()
    assert times(tmp_path, {"steps": 9, "provenance": {"started": began}}, 0)[1] == "unknown"
    assert times(tmp_path, {"steps": 9, "provenance": {"started": began}}, 3)[1] != "unknown"


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("config.yaml", "steps: 4\n", "steps: many\n", "config.yaml is damaged"),
        ("config.yaml", "training_seconds: ", "training_seconds: about ", "config.yaml is damaged"),
        ("metrics.csv", "step,", "when,", "metrics.csv is not a table of numbers, `step` among"),
        ("metrics.csv", "0,", "zero,", "metrics.csv is not a table of numbers"),
        ("metrics.csv", "0,", "\0,", "metrics.csv is not a table of numbers"),
        ("metrics.csv", "\n0,", "\ninf,", "metrics.csv is not a table of numbers"),
    ],
)
def test_an_edited_file_is_named_and_hides_no_other_run(two_runs, file, old, new, says):
    folder = two_runs / "runs/xor_grokking/p=60,n=8,width=6,steps=4"
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    ended = run("report.py", "runs", folder=two_runs)
    assert ended.returncode == 0
    assert says in ended.stderr and ended.stderr.count("\n") == 1
    rows = [row.split(" | ")[1] for row in ended.stdout.splitlines()[2:]]
    assert sorted(rows) == ["damaged", "finished"]


def test_a_run_that_has_measured_nothing_yet_has_begun(tmp_path, capsys):
    config = {"steps": 9, "provenance": {"device": "cpu", "command": ""}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert report.main(["runs", str(tmp_path)]) == 0
    assert "| stopped | 0 of 9 (0%) | – | – |" in capsys.readouterr().out


def test_compare_takes_runs_of_its_script_only(two_runs, capsys):
    folder = two_runs / "runs/xor_grokking/p=60,n=8,width=6,steps=4"
    assert report.main(["compare", "comparison_to_ntk", str(folder), str(folder)]) == 2
    assert "takes runs of comparison_to_ntk, which has no option --" in capsys.readouterr().err
    assert report.main(["--name", "x"]) == 2
    assert "--name goes with a report" in capsys.readouterr().err


def test_a_run_that_goes_tells_when_it_ends(two_runs):
    going = start("xor_grokking.py", *TINY[:-1], 200_000, "--name", "going", folder=two_runs)
    table = two_runs / "runs/xor_grokking/going/metrics.csv"
    while not (table.exists() and len(table.read_text().splitlines()) > 3):
        assert going.poll() is None
        time.sleep(0.05)
    line = run("report.py", "runs", "runs/xor_grokking/going", folder=two_runs).stdout.splitlines()[
        -1
    ]
    going.kill()
    assert "| running |" in line
    assert re.search(r"\| \d\d \w+ \d\d:\d\d \|$", line)


def test_a_table_of_measurements_alone_is_evaluated(tmp_path, capsys):
    rows = "step,train_accuracy,test_accuracy\n0,0.1,0.1\n8,1.0,0.2\n90,1.0,0.96\n"
    (tmp_path / "metrics.csv").write_text(rows)
    assert report.main(["runs", str(tmp_path / "metrics.csv")]) == 0
    assert "| 90 | 1.000 | 0.960 | 8 | 90 |" in capsys.readouterr().out
    assert report.main(["runs", str(tmp_path / "nowhere")]) == 2
    assert "there is none in" in capsys.readouterr().err


def test_folders_with_one_name_are_told_apart():
    paths = [Path("a/x/default"), Path("b/x/default")]
    assert short_names(paths) == ["a/x/default", "b/x/default"]
    assert short_names([Path("runs/s/one"), Path("results/s/two")]) == ["one", "two"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="'missing' holds none"):
        run_folder("missing", tmp_path)


def test_an_interval_is_students():
    # t(0.975, 2) = 4.3027, s = 1, so that the half width is 4.3027 / √3.
    assert interval([1.0, 2.0, 3.0]) == "2.00 [-0.48, 4.48]"
    assert interval([2.0]) == "2.00"
    assert interval([]) == "–"


def test_an_interval_of_ratios_is_that_of_their_logarithms():
    # Logarithms of base 2 are −1, 0, 1, whose interval is 2.48 wide to either side.
    assert interval([0.5, 1.0, 2.0], ratio=True) == "1.00 [0.18, 5.59]"
    assert interval([2.0], ratio=True) == "2.00"
