"""Figures, tables and pages across finished runs; trains nothing.

    python report.py                                       # every page of results/, from its runs
    python report.py --check                               # whether the pages say what the runs do
    python report.py runs                                  # your runs, also while they go
    python report.py compare xor_grokking default jr=1.0   # runs of a script in one figure
    python report.py table_1 --out_dir results             # from the committed runs

Each report is a file in `lab/reports/`, each page a template in `lab/reports/templates/`. Runs are
given by their folder, or by their name in `<out_dir>/<script>`.
"""

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from lab import reports
from lab.bench.cli import script
from lab.bench.errors import TrainingError, UserError
from lab.bench.files import write_text
from lab.bench.provenance import typed_line
from lab.reports._pages import Pages, differences

ROOT = Path(__file__).resolve().parent
SHOWN = 20  # differing lines
NAMES = sorted(p.stem for p in Path(reports.__file__).parent.glob("[!_]*.py"))


def script_module(name: str) -> ModuleType:
    """The module of a script, given with or without `.py`; raises UserError if there is none."""
    stem = name.removesuffix(".py")
    if not stem.isidentifier() or not (ROOT / f"{stem}.py").is_file():
        raise UserError(f"there is no script {name}")
    module = importlib.import_module(stem)
    if not hasattr(module, "Options"):
        raise UserError(f"{name} makes no runs")
    return module


def about() -> str:
    """Every report's name and the first line of its account."""
    first = {n: (importlib.import_module(f"lab.reports.{n}").__doc__ or "").splitlines()[0]
             for n in NAMES}  # fmt: skip
    return "; ".join(f"{name}: {line.rstrip('.')}" for name, line in first.items())


def write_pages(out_dir: Path, data_dir: str, check: bool) -> None:
    """Writes every page, or compares them with what is there.

    Raises:
        UserError: if there are no runs.
        TrainingError: if a page differs.
    """
    if not any(out_dir.glob("*/*/config.yaml")):
        raise UserError(f"--out_dir takes a folder of runs; there are none in {out_dir}")
    pages = Pages(out_dir, script_module, data_dir, draw=not check)
    texts = pages.texts()
    if check:
        if found := differences(texts):
            print(*found[:SHOWN], *["…"] * (len(found) > SHOWN), sep="\n", file=sys.stderr)
            raise TrainingError(f"{len(found)} lines differ; `python report.py` writes them")
        print(f"{len(texts)} pages say what the runs in {out_dir} give")
        return
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        print(path)


@script
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("report", nargs="?", help=f"every page if none is given; {about()}")
    parser.add_argument("words", nargs="*", help="runs, or what else the report takes")
    parser.add_argument(
        "--out_dir", help="folder of the runs (default: results for the pages, runs for a report)"
    )
    parser.add_argument("--data_dir", default="data", help="folder of the images (default: data)")
    parser.add_argument("--name", help="of a picture that runs are named for")
    parser.add_argument("--check", action="store_true", help="compare the pages, write nothing")
    parser.error = lambda message: parser.exit(2, f"report.py: error: {message}\n")  # type: ignore[method-assign]
    o = parser.parse_intermixed_args(argv)
    if o.report is None:
        if o.name is not None:
            raise UserError("--name goes with a report, whose picture it names")
        write_pages(Path(o.out_dir or "results"), o.data_dir, o.check)
        return
    if o.check:
        raise UserError("--check takes no report: it compares all pages")
    if o.report not in NAMES:
        raise UserError(f"there is no report {o.report}; there are {', '.join(NAMES)}")
    if o.name is not None and (set(o.name) & set("/\\") or not o.name):
        raise UserError(f"--name takes a file's name, without slashes, got {o.name!r}")
    request = reports.Request(
        Path(o.out_dir or "runs"), tuple(o.words), o.data_dir, typed_line(), script_module, o.name
    )
    importlib.import_module(f"lab.reports.{o.report}").report(request)


if __name__ == "__main__":
    raise SystemExit(main())
