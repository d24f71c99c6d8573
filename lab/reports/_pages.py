"""Pages made from runs: the prose of `templates/`, the numbers, tables and pictures of the runs.

A template `templates/<script>.md` becomes `<out_dir>/<script>/README.md`, `index.md` becomes
`<out_dir>/README.md`, and `readme.md` the project's README. They are Jinja templates in which

    runs(jr=1.0), runs(script="sparse_parity", n=40)   finished runs, all other options at default
    run("pert2")                                       one run by its name
    {{ runs().end("alignment").span(".2f") }}          a number of each: lab/reports/_groups.py
    {% set both = columns(runs(), runs(jr=1.0)) %}     | {{ both.end("loss").span() }} | as columns
    {{ 40000 | n }}                                    40,000
    {{ table("table_1", "speed_ups", dtype="float32") }}   rows of a report
    {{ cells("figure_10", "readings").text("on both", factor="4") }}   a cell of them
    {{ runs().picked(rows("figure_11.csv"), "radius", moment="last") }}   of what it wrote
    {{ drawn("figure_7", "figure_7.png") }}            a report's picture, drawn with the page
    {{ picture("default/figure.png", "Figure 4") }}    a picture that is there
    {{ commands(runs(), runs(jr=1.0)) }}               what makes them; commands() all of the page's
    {{ paper("7.56 ± 0.82") }}                         a fact that no run of ours gives
    {% call claim("…", runs()) %} … {% endcall %}   a row of the page, the index, the gallery
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import shlex
from collections.abc import Callable
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from lab.bench.errors import UserError
from lab.bench.statistics import Finished, Row, all_finished, finished_runs, markdown
from lab.bench.sweeps import Job
from lab.reports import Request
from lab.reports._columns import Columns
from lab.reports._groups import Runs
from lab.reports._rows import NOT_RUN, Rows

TEMPLATES = Path(__file__).with_name("templates")
SPECIAL = ("index", "readme")  # made last: they quote the others' claims


class Pages:
    """All pages of a folder of runs.

    Args:
        out_dir: the folder of the runs.
        script: name -> module of a script, for its options.
        data_dir: the folder of the images, for pictures that show some.
        draw: whether pictures are drawn with the pages.
    """

    def __init__(
        self, out_dir: Path, script: Callable[[str], Any], data_dir: str, draw: bool
    ) -> None:
        self.out_dir, self.script, self.data_dir, self.draw = out_dir, script, data_dir, draw
        self.claims: dict[str, list[tuple[str, str]]] = {}
        self.tables: dict[tuple[str, tuple[str, ...]], dict[str, list[Row]]] = {}
        self._finished: dict[str, list[Finished]] = {}
        self._jinja = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self._jinja.filters["n"] = lambda x: x if x == NOT_RUN else f"{x:,}"

    def texts(self) -> dict[Path, str]:
        """Every page's place and text; the project's README only for its own `results`."""
        names = sorted(p.stem for p in TEMPLATES.glob("*.md") if p.stem not in SPECIAL)
        found = {self.out_dir / name / "README.md": self._text(name) for name in names}
        found[self.out_dir / "README.md"] = self._text("index")
        if self.out_dir.resolve() == TEMPLATES.parents[2] / "results":
            found[self.out_dir.parent / "README.md"] = self._text("readme")
        return found

    def _text(self, name: str) -> str:
        page = _Page(self, name)
        functions = {f: getattr(page, f) for f in dir(page) if not f.startswith("_")}
        return self._jinja.get_template(f"{name}.md").render(**functions)

    def finished(self, script: str) -> list[Finished]:
        """The finished runs of a script, read once."""
        if script not in self._finished:
            self._finished[script] = all_finished(self.out_dir / script)
        return self._finished[script]


class _Page:
    """What a template can call."""

    def __init__(self, pages: Pages, name: str) -> None:
        self._pages, self._name = pages, name
        self._groups: list[Runs] = []

    def runs(self, script: str | None = None, **options: Any) -> Runs:
        name = script or self._name
        of_script = self._pages.script(name).Options
        groups = finished_runs(self._pages.finished(name), of_script, (), **options)
        if unknown := options.keys() - of_script().identity().keys():
            raise UserError(f"{name}.py has no option --{min(unknown)}")
        self._groups.append(Runs(run for _, run in sorted(groups.get((), {}).items())))
        return self._groups[-1]

    def run(self, name: str, script: str | None = None) -> Runs:
        of_script = self._pages.finished(script or self._name)
        return Runs(run for run in of_script if run.folder.name == name)

    def uncommitted(self) -> int:
        """The number of runs that were made beside changes which no commit has."""
        names = (path.stem for path in TEMPLATES.glob("*.md") if path.stem not in SPECIAL)
        runs = (run for name in names for run in self._pages.finished(name))
        return sum("+changes" in str(run.config["provenance"].get("commit")) for run in runs)

    def cells(self, report: str, name: str, *words: str, **options: Any) -> Rows:
        """A table of a report, none if there are no runs."""
        module = importlib.import_module(f"lab.reports.{report}")
        request, made = self._request(report, words, options), self._pages.tables
        key = (report, request.words)
        with contextlib.suppress(UserError):
            if key not in made:
                made[key] = module.tables(request)
            return Rows(made[key][name])
        return Rows()

    def table(self, report: str, name: str, *words: str, **options: Any) -> str:
        found = self.cells(report, name, *words, **options)
        return markdown(found) if found else NOT_RUN

    def rows(self, *paths: str) -> Rows:
        """Of tables that a report wrote beside its pictures; none of one that is not there."""
        found = Rows()
        for path in paths:
            with contextlib.suppress(FileNotFoundError), (self._folder / path).open() as file:
                found += csv.DictReader(file)
        return found

    def drawn(self, report: str, path: str, caption: str, *words: str, **options: Any) -> str:
        if self._pages.draw:
            module = importlib.import_module(f"lab.reports.{report}")
            with contextlib.suppress(UserError), contextlib.redirect_stdout(io.StringIO()):
                module.report(self._request(report, words, options))
        return self.picture(path, caption)

    def picture(self, path: str, caption: str) -> str:
        there = (self._folder / path).exists()
        return f"![{caption}](<{path}>)" if there else f"{caption}: {NOT_RUN}."

    def commands(self, *groups: Runs) -> str:
        """What makes these runs, or else all that the page has asked for so far."""
        lines = []
        for group in groups or self._groups:
            for run in group.runs[:1]:
                options = self._pages.script(run.folder.parent.name).Options
                given = {k: run.config[k] for k in options().identity() if k != "seed"}
                given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
                seeds = [str(run.config["seed"]) for run in group.runs]
                words = Job(run.folder.parent.name, options(**given)).words()
                several = len(seeds) > 1
                seed = [] if seeds == ["0"] else ["--seed", *seeds]
                lines.append(" ".join(["    python", *(["sweep.py"] * several), *words, *seed]))
        return "\n".join(dict.fromkeys(lines)) or f"    # {NOT_RUN}"

    def columns(self, *groups: Runs) -> Columns:
        return Columns(*groups)

    def paper(self, text: str) -> str:
        return text

    def claim(self, text: str, *runs: Any, caller: Callable[[], str]) -> str:
        """A row with a verdict; without one where none of `runs`, or of a number's, are there."""
        verdict = " ".join(caller().split())
        lacking = NOT_RUN in verdict or "n = 0" in verdict
        if (runs and not any(runs)) or (lacking and not verdict.startswith("undecided")):
            verdict = NOT_RUN
        self._pages.claims.setdefault(self._name, []).append((text, verdict))
        return f"| {text} | {verdict} |\n"  # Jinja has taken the line's own end

    def verdicts(self, script: str) -> str:
        """The claims of a page as rows that link to it."""
        found = self._pages.claims.get(script, [])
        return "\n".join(
            f"| {text} | {said} | [{script}]({script}/README.md) |" for text, said in found
        )

    def shown(self, figure: str, script: str, path: str, command: str, of: str = "") -> str:
        """A row of the gallery: a small picture, the verdict up to its first ";", a command.

        It is that of the page's first claim, or of the first that has the words `of`.
        """
        there = (self._pages.out_dir / script / path).exists()
        small = f'<img src="results/{script}/{quote(path)}" width="240">' if there else NOT_RUN
        page = f"results/{script}/README.md"
        text, said = next(claim for claim in self._pages.claims[script] if of in claim[0])
        return f"| [{figure}]({page}) | {small} | *{text}*: {said.split(';')[0]} | `{command}` |"

    def minutes(self, script: str, **options: Any) -> str:
        """Of updates, as the run of the first seed recorded it; on a CPU the main thread's own."""
        took = self.runs(script, **options).minutes().numbers[:1]
        return f"{took[0]:.{took[0] < 3:d}f}" if took else "–"

    @property
    def _folder(self) -> Path:
        return {"index": self._pages.out_dir, "readme": self._pages.out_dir.parent}.get(
            self._name, self._pages.out_dir / self._name
        )

    def _request(self, report: str, words: tuple[str, ...], options: dict[str, Any]) -> Request:
        words += tuple(f"{key}={value}" for key, value in options.items())
        pages = self._pages
        typed = shlex.join(["python", "report.py", report, *words, "--out_dir", str(pages.out_dir)])
        return Request(pages.out_dir, words, pages.data_dir, typed, pages.script, None)


def differences(texts: dict[Path, str]) -> list[str]:
    """Where the pages on disk differ from these: page, line, what is there and what should be."""
    found = []
    for path, text in texts.items():
        try:
            there = path.read_text().splitlines()
        except FileNotFoundError:
            found.append(f"{path}: is not there")
            continue
        wanted = text.splitlines()
        for tag, *(a, b, c, d) in SequenceMatcher(None, there, wanted, False).get_opcodes():
            pairs = enumerate(zip_longest(there[a:b], wanted[c:d], fillvalue=""), a + 1)
            for i, (is_, should) in pairs if tag != "equal" else ():
                found.append(f"{path}:{i}: is {is_!r}; the runs give {should!r}")
    return found
