"""report.py: pages from runs, and what --check says of a page that differs from them."""

import dataclasses
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest

import report
from helpers import ROOT, run
from lab.bench.errors import UserError
from lab.bench.options import option
from lab.bench.shared import Shared
from lab.bench.statistics import Finished, arrival, finished_runs
from lab.reports._columns import Columns
from lab.reports._groups import Runs
from lab.reports._pages import TEMPLATES, Pages, _Page
from lab.reports._rows import Rows
from lab.reports._values import Values

RESULTS = ROOT / "results"
# Where a decimal number may stand in a template: expressions, code, links, names of papers.
TAKEN = (r"\{\{.*?\}\}", r"\{%.*?%\}", r"```.*?```", r"`[^`]*`", r"^    .*?$", r"\]\([^)]*\)",
         r"arXiv[: ]\d{4}\.\d{5}")  # fmt: skip


def runs_of(*columns, steps=(0, 10, 100)):
    """Runs with one column `a` each, and seeds from 0 on."""
    return Runs(
        Finished(
            ROOT,
            {"seed": seed, "lr": 0.1, "provenance": {"training_seconds": 120.0}, "results": {}},
            {"step": numpy.array(steps), "a": numpy.array(column)},
        )
        for seed, column in enumerate(columns)
    )


def test_numbers_of_runs():
    runs = runs_of([0.0, 0.5, 1.0], [0.0, 0.2, 0.4])
    assert runs.first("a", 0.45).numbers == (10, None)
    assert runs.first_of("a", 0.5).numbers == (10, None)  # at the level itself
    assert runs.first("a", 0.5).numbers == (100, None)
    assert runs.start("a").numbers == (0.0, 0.0)
    assert runs.end("a").numbers == (1.0, 0.4)
    assert runs.at("a", 5).numbers == (0.5, 0.2)
    assert runs.at("a", runs.first("a", 0.45)).numbers == (0.5, None)
    assert runs.most("a", until=10).numbers == (0.5, 0.2)
    assert runs.fewest("a", after=10).numbers == (0.5, 0.2)
    assert runs.most_while("a", "step", 5).numbers == (1.0, 0.4)
    assert runs.without(0).end("a").numbers == (0.4,)
    assert runs.step_of_most("a").numbers == (100, 100)
    assert runs.minutes().numbers == (2.0, 2.0)
    assert (runs.end("a") / runs.one(1).end("a")).numbers == (1.0,)
    assert (runs_of(*[[0.0]] * 4).seeds(), runs.without(0).seeds()) == ("seeds 0 to 3", "seed 1")
    assert (runs.option("lr"), runs.seeds(), runs.one(1).seeds()) == (0.1, "seeds 0, 1", "seed 1")


def test_numbers_as_text():
    values = Values((2236, 2312, None), (5000, 5000, 5000))
    assert values.each() == "2,236, 2,312, never"
    assert values.span() == "2,236–2,312 in 2 of 3"
    assert Values((-0.06, -0.05)).span(".2f") == "−0.06 to −0.05"
    assert Values((1e-8,)).span(".0e") == "1e-08"
    assert Values((0.171, 0.1712)).span(".2f") == "0.17"
    assert Values((None,)).span() == "never"
    assert Values(()).span() == Values(()).interval() == "not run yet"
    assert Values((1.0, 2.0, 3.0)).interval(".2f") == "2.00 [−0.48, 4.48]"
    assert (Values((6.0, 8.0)) / Values((2.0, 4.0))).numbers == (3.0, 2.0)
    shared = Values((6.0, 8.0), seeds=(0, 2)) / Values((1.0, 4.0, 5.0), seeds=(1, 2, 3))
    assert (shared.numbers, shared.seeds) == ((2.0,), (2,))
    assert (Values((2.0, 8.0)) / Values((1.0, 1.0))).interval(".0f").startswith("4 [0, ")
    assert (Values((2.0, 8.0)) / 1.0).interval(".0f").startswith("5 [")  # no ratio of runs
    assert (Values((6.0, None)) / Values((2.0, 4.0), (9.0, 9.0))).interval() == "3 in 1 of 2"
    assert Columns(Values((1,)), Values((2,))).span() == "1 | 2"
    two = Columns(runs_of([0.0, 0.5, 1.0]), runs_of([0.0, 0.2, 0.4]))
    assert two.at("a", two.first("a", 0.3)).span(".1f") == "0.5 | 0.4"


def test_levels_and_gaps_and_cells_of_tables():
    runs = runs_of([0.0, 0.5, 1.0], [2.0, numpy.nan, 3.0])
    half = runs.start("a") + (runs.end("a") - runs.start("a")) * 0.5
    assert runs.first_of("a", half).numbers == (10, 100)
    assert runs.most("a").numbers == (1.0, 3.0)
    assert runs.step_of_most("a", after=1).numbers == (100, 100)
    assert runs.step_of_fewest("a", after=1).numbers == (10, 100)
    runs = runs_of([1.0, 20.0, 120.0], steps=(2, 10, 100))
    assert runs.relative_difference("a", "step", 0.5).numbers == (0.5,)
    assert runs.relative_difference("a", "step", 1).numbers == (1.0,)
    # Wilson's interval of 5 among 256, by hand.
    z, n, p = 1.959964, 256, 5 / 256
    half = z * (p * (1 - p) / n + z**2 / 4 / n**2) ** 0.5 / (1 + z**2 / n)
    low, high = ((p + z**2 / 2 / n) / (1 + z**2 / n) + way * half for way in (-1, 1))
    assert Values((p,)).shares(256) == f"2.0 % [{100 * low:.1f}, {100 * high:.1f}]"
    rows = Rows(
        [{"run": ROOT.name, "when": "end", "b": "3"}, {"run": "x", "when": "end", "b": "4"}]
    )
    assert runs.picked(rows, "b", when="end").span() == "3"
    assert runs.picked(rows, "b", when="start").span() == "not run yet"
    assert (rows.text("b", run="x"), rows.text("b", run="y")) == ("4", "not run yet")


def test_runs_that_never_arrive_are_censored():
    # Kaplan and Meier: 0.8, 0.6, 0.4 after 100, 200 and 300, and no event later.
    assert arrival([100, 200, 300, None, None], [500] * 5).startswith("300 [100, –] (3 of 5)")
    # One that was stopped before the others arrived counts until then only: 1, 0.75, 0.5.
    assert arrival([None, 200, 300, 400], [50, 500, 500, 500]).startswith("300 [")
    assert arrival([None, None], [500, 500]) == "– (0 of 2)"
    assert arrival([10] * 10, [500] * 10) == "10 [10, 10] (10 of 10)"
    assert arrival([10] * 3, [500] * 3) == "10 [10, –] (3 of 3)"  # too few for an upper end
    assert "never" not in Values((100, 200, None), (500,) * 3).interval()


def test_runs_with_other_options_are_other_runs():
    @dataclass
    class Options(Shared):
        samples: tuple[int, ...] = option((0, 1), "points", least=0)

    config = {**dataclasses.asdict(Options()), "samples": [0, 1], "provenance": {}}  # as in YAML
    plain, other = (Finished(ROOT, each, {}) for each in (config, {**config, "scaling": True}))
    assert finished_runs([plain, other], Options, ()) == {(): {0: plain}}
    assert finished_runs([plain], Options, (), samples=(0, 2)) == {}


def test_a_run_stopped_before_its_results_is_named():
    (run,) = runs_of([0.0, 0.5, 1.0]).runs
    del run.config["results"]
    with pytest.raises(UserError, match="was stopped at its end"):
        Runs([run]).result("grokked_at")


def test_a_claim_without_runs_has_no_verdict():
    page = _Page(Pages(ROOT, None, "", draw=False), "xor_grokking")
    there = runs_of([0.0, 0.5, 1.0])
    assert page.claim("a", there, Rows(), caller=lambda: "holds\n") == "| a | holds |\n"
    assert page.claim("b", Runs([]), Rows(), caller=lambda: "holds") == "| b | not run yet |\n"
    assert page.claim("c", caller=lambda: "holds") == "| c | holds |\n"
    for said in ("reproduced, n = 0", "partly: not run yet times sooner"):
        assert page.claim("d", caller=lambda said=said: said) == "| d | not run yet |\n"
    said = "undecided, because with float64 not run yet"
    assert page.claim("e", caller=lambda: said) == f"| e | {said} |\n"


def test_runs_beside_changes_are_counted():
    pages = Pages(Path("nowhere"), None, "", draw=False)
    runs = runs_of([0.0], [1.0], [0.5]).runs
    for each, commit in zip(runs, ("abc", "abc+changes", None), strict=True):
        each.config["provenance"] = {"commit": commit}
    pages._finished["xor_grokking"] = runs
    assert _Page(pages, "index").uncommitted() == 1


def test_the_gallery_has_the_first_words_of_a_verdict():
    page = _Page(Pages(ROOT, None, "", draw=False), "xor_grokking")
    page.claim("a", caller=lambda: "partly, n = 3: a half; with the control")
    page.claim("b (Figure 4)", caller=lambda: "reproduced")
    row = page.shown("Figure 4", "xor_grokking", "none.png", "python xor_grokking.py")
    assert row.endswith("| *a*: partly, n = 3: a half | `python xor_grokking.py` |")
    row = page.shown("Figure 4", "xor_grokking", "none.png", "python xor_grokking.py", "(Figure 4)")
    assert row.endswith("| *b (Figure 4)*: reproduced | `python xor_grokking.py` |")


def test_a_page_has_the_commands_of_all_runs_that_it_asked_for():
    page = _Page(Pages(RESULTS, report.script_module, "", draw=False), "xor_grokking")
    assert page.commands() == "    # not run yet"
    groups = page.runs(), page.runs(jr=1.0), page.runs(jr=1.0), page.runs(jr=7.0)  # none of 7
    line = "    python sweep.py xor_grokking.py"
    assert page.commands() == f"{line} --seed 0 1 2\n{line} --jr 1.0 --seed 0 1 2"
    assert page.commands(groups[1]) == f"{line} --jr 1.0 --seed 0 1 2"


@pytest.mark.parametrize("figure", ["Figure 6", "Figure 9", "Figure 10"])
def test_a_figure_s_row_in_the_gallery_has_a_claim_of_that_figure(figure):
    text = (ROOT / "README.md").read_text()
    (row,) = re.findall(rf"^\| \[{figure}\]\(.*$", text, re.M)
    assert f"({figure})*: " in row


def test_a_picture_drawn_with_a_page_has_beneath_it_what_draws_it(monkeypatch):
    asked = []
    monkeypatch.setattr("lab.reports.figure_9.report", asked.append)
    page = _Page(Pages(Path("results"), None, "", draw=True), "modular_addition")
    page.drawn("figure_9", "none.png", "Figure 9", trainable_unembedding=True)
    line = "python report.py figure_9 trainable_unembedding=True --out_dir results"
    assert [request.typed for request in asked] == [line]


@pytest.fixture
def results(tmp_path):
    """The committed runs of one script, and every page that the templates give of them."""
    shutil.copytree(RESULTS / "xor_grokking", tmp_path / "results/xor_grokking")
    assert report.main(["--out_dir", "results"]) == 0
    return tmp_path / "results"


def test_pages_without_runs_say_so(results):
    said = {path.parent.name: path.read_text() for path in results.glob("*/README.md")}
    assert said.keys() == {p.stem for p in TEMPLATES.glob("*.md")} - {"index", "readme"}
    assert all("not run yet" in text for name, text in said.items() if name != "xor_grokking")
    assert "not run yet" not in said["xor_grokking"]


def test_a_changed_number_in_a_run_or_a_page_is_found(results, capsys):
    assert report.main(["--out_dir", "results", "--check"]) == 0
    table = results / "xor_grokking/default/metrics.csv"
    original = table.read_text()
    *rows, last = original.splitlines()
    cells = last.split(",")
    cells[rows[0].split(",").index("alignment")] = "0.5"
    table.write_text("\n".join([*rows, ",".join(cells)]) + "\n")
    capsys.readouterr()
    assert report.main(["--out_dir", "results", "--check"]) == 1
    complaint = capsys.readouterr().err
    assert re.search(r"results/xor_grokking/README.md:\d+: is '.*'; the runs give", complaint)
    assert re.search(r"results/README.md:\d+: is", complaint)  # whose verdicts come from the pages
    table.write_text(original)
    page = results / "xor_grokking/README.md"
    page.write_text(page.read_text().replace("0.171", "0.181", 1))
    assert report.main(["--out_dir", "results", "--check"]) == 1
    assert "0.181" in capsys.readouterr().err
    page.unlink()
    assert report.main(["--out_dir", "results", "--check"]) == 1
    assert "xor_grokking/README.md: is not there" in capsys.readouterr().err


def test_the_committed_pages_say_what_the_committed_runs_give():
    ended = run("report.py", "--check", folder=ROOT)
    assert ended.returncode == 0, ended.stderr


def test_bad_calls_are_one_line(capsys):
    for words, says in (
        (["--out_dir", "nowhere"], "--out_dir takes a folder of runs"),
        (["table_1", "--check"], "--check takes no report"),
    ):
        assert report.main(words) == 2
        complaint = capsys.readouterr().err
        assert says in complaint
        assert len(complaint.splitlines()) == 1


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.md")), ids=lambda path: path.stem)
def test_numbers_in_prose_come_from_runs(path):
    """A decimal number stands in an expression, in code, or in a paper's identifier."""
    text = path.read_text()
    for taken in TAKEN:
        text = re.sub(taken, "", text, flags=re.M if taken[0] == "^" else re.S)
    assert re.findall(r"\S*\d[.,]\d\S*", text) == []


def test_results_stay_small():
    """As a disk counts, in blocks of 4 KiB, one a folder; the states of runs are to go first."""
    paths = (ROOT / "results").rglob("*")
    sizes = [path.stat().st_size if path.is_file() else 4096 for path in paths]
    assert sum(-(-size // 4096) * 4096 for size in sizes) < 25e6
