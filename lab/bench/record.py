"""Copies finished runs into the repository: `python -m lab.bench.record runs/*/* --to results`.

What a run wrote, made small: config.yaml as it is, its tables with 6 significant digits (of those
that it kept along the way the first and the last), no checkpoint, and its picture only with
--pictures. With --weights the states that a run kept are written beside them in float32, a file
each, so that figures can be drawn from them again. Given the folders of `results` itself, it only
rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import torch

from lab.bench.checkpoints import read_checkpoint
from lab.bench.errors import UserError
from lab.bench.files import is_finished, read_config, replace, write_text
from lab.bench.snapshots import moments_of

DIGITS = 6


def rounded(path: Path) -> str:
    """A table of numbers, separated by commas, of 6 significant digits, or whole.

    Raises:
        UserError: if it has no rows, or not a number for each column until its last line's end.
    """
    text, lines = path.read_text(), []
    head, *rows = [line.split(",") for line in text.splitlines()] or [[]]
    with contextlib.suppress(ValueError):
        for row in rows:
            numbers = (float(value) for value, _ in zip(row, head, strict=True))
            lines.append(",".join(_text(number) for number in numbers))
    if not rows or len(lines) < len(rows) or not text.endswith("\n"):
        raise UserError(f"{path} is empty, cut or damaged after {len(lines)} rows of numbers")
    return "".join(line + "\n" for line in [",".join(head), *lines])


def _text(number: float) -> str:
    """Steps may have more digits than are kept; from 1e15 on a float counts no ones."""
    whole = number.is_integer() and abs(number) < 1e15
    return f"{number:.0f}" if whole else f"{number:.{DIGITS}g}"


def record(folder: Path, root: Path, weights: bool = False, pictures: bool = False) -> Path:
    """Copies one finished run to `root/<script>/<run>`, and returns that folder.

    Raises:
        UserError: if its tables are not whole, or `weights` asks for states and it keeps none.
    """
    metrics, checkpoint = folder / "metrics.csv", folder / "checkpoint.pt"
    along = sorted(folder.glob("*/*.csv"), key=lambda path: (len(path.name), path.name))
    tables = {path: rounded(path) for path in (metrics, *along[:1], *along[1:][-1:])}
    if checkpoint.exists():
        measured = len(read_checkpoint(checkpoint, read_config(folder)["steps"])["rows"])
        if (there := tables[metrics].count("\n") - 1) != measured:
            raise UserError(
                f"{metrics} has {there} of {measured} rows; the run's own command, given again, "
                "writes them all"
            )
    target = root / folder.resolve().parent.name / folder.name
    for path, table in tables.items():
        copy = target / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_text(copy, table)
    for name in ("config.yaml", *(["figure.png"] if pictures else [])):
        content = (folder / name).read_bytes()
        replace(target / name, lambda file, content=content: file.write(content))
    if weights:
        for name, moment in moments_of(folder).items():
            kept, single = moment.kept, torch.is_tensor(moment.kept)
            kept = kept.float() if single else {k: v.float() for k, v in kept.items()}
            content = {"step": moment.step, "kept": kept}
            replace(
                target / f"moment_{name}.pt",
                lambda file, content=content: torch.save(content, file),
            )
    return target


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    text = "folders of finished runs; files beside them are passed over"
    parser.add_argument("runs", nargs="+", type=Path, help=text)
    parser.add_argument("--to", type=Path, default=Path("results"), help="default: results")
    parser.add_argument("--weights", action="store_true", help="with the states that they kept")
    parser.add_argument("--pictures", action="store_true", help="with figure.png")
    o = parser.parse_args(argv)
    try:
        folders = [path for path in o.runs if not path.is_file()]
        for folder in folders:  # all of them first, so that all are copied or none
            if not is_finished(folder):
                raise UserError(f"{folder} is not a finished run")
        for folder in folders:
            print(record(folder, o.to, o.weights, o.pictures))
    except (UserError, OSError, ValueError) as error:
        print(f"record: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
