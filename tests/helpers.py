"""Runs the commands that users type, and interrupts them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import numpy
import yaml

ROOT = Path(__file__).resolve().parent.parent


def line_of(options: dict) -> str:
    """Options as they are typed: `--p 11 --sgd`."""
    return " ".join(f"--{k}" if v is True else f"--{k} {v}" for k, v in options.items())


# Every script that makes runs, small, by name, without the ending .py.
TINY = {
    cell.pop("script").removesuffix(".py"): line_of(cell)
    for cell in yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
}


def start(script: str, *arguments: object, folder: Path) -> subprocess.Popen:
    """Starts `python <script> <arguments>` in `folder`, on one thread."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess:
    """Runs a script to its end; the result has `returncode`, `stdout` and `stderr`."""
    process = start(script, *arguments, folder=folder)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def code_of(main: Callable[[list[str]], int], words: Iterable[object]) -> object:
    """Exit code of a script's `main`, whether it is returned or ends the script on its way."""
    try:
        return main([str(word) for word in words])
    except SystemExit as ended:
        return ended.code


def main_of(script: ModuleType) -> Callable[..., object]:
    """A script's `main`, of words instead of a list; returns its exit code."""
    return lambda *words: code_of(script.main, words)


def interrupt(
    script: str,
    *arguments: object,
    folder: Path,
    run_folder: Path,
    rows: int,
    signal: signal.Signals,
) -> subprocess.CompletedProcess:
    """Starts a script and sends it a signal once metrics.csv has `rows` measurements."""
    process = start(script, *arguments, folder=folder)
    metrics = run_folder / "metrics.csv"
    while process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) > rows:
            process.send_signal(signal)
            break
        time.sleep(0.002)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def write_cifar(folder: Path, points: int = 12) -> Path:
    """A cifar10-<points>.npz in `folder`: four classes, each of a colour of its own, and noise."""
    draws = numpy.random.default_rng(0)
    colours = draws.integers(60, 200, (10, 1, 1, 3))
    arrays = {}
    for split in ("train", "test"):
        labels = draws.integers(0, 4, points)
        noise = draws.integers(-40, 41, (points, 32, 32, 3))
        arrays[f"x_{split}"] = (colours[labels] + noise).astype(numpy.uint8)
        arrays[f"y_{split}"] = labels
    folder.mkdir(exist_ok=True)
    path = folder / f"cifar10-{points}.npz"
    numpy.savez(path, **arrays)
    return path
