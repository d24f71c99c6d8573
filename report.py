"""Figures and tables across finished runs; trains nothing.

    python report.py                                       # what there is
    python report.py compare xor_grokking default jr=1.0   # runs of a script in one figure
    python report.py table_1 --out_dir results             # from the committed runs

Each report is a file in `lab/reports/`. Runs are given by their folder, or by their name in
`<out_dir>/<script>`.
"""

import argparse
import importlib
from pathlib import Path
from types import ModuleType

from lab import reports
from lab.bench.cli import script
from lab.bench.errors import UserError
from lab.bench.provenance import typed_line

ROOT = Path(__file__).resolve().parent
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


@script
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("report", nargs="?", help=", ".join(NAMES))
    parser.add_argument("words", nargs="*", help="runs, or what else the report takes")
    parser.add_argument("--out_dir", default="runs", help="folder of the runs (default: runs)")
    parser.add_argument("--data_dir", default="data", help="folder of the images (default: data)")
    parser.add_argument("--name", help="of the picture that compare draws (default: the runs')")
    parser.error = lambda message: parser.exit(2, f"report.py: error: {message}\n")  # type: ignore[method-assign]
    o = parser.parse_intermixed_args(argv)
    if o.report is None:
        for name in NAMES:
            doc = importlib.import_module(f"lab.reports.{name}").__doc__ or ""
            print(f"{name:18} {doc.splitlines()[0]}")
        return
    if o.report not in NAMES:
        raise UserError(f"there is no report {o.report}; there are {', '.join(NAMES)}")
    request = reports.Request(
        Path(o.out_dir), tuple(o.words), o.data_dir, typed_line(), script_module, o.name
    )
    importlib.import_module(f"lab.reports.{o.report}").report(request)


if __name__ == "__main__":
    raise SystemExit(main())
