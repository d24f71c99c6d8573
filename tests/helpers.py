"""Runs the commands that users type, and interrupts them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy

ROOT = Path(__file__).resolve().parent.parent
IMAGES = "--dataset digits --points 60"
# Every script that makes runs, small: a dozen updates take a second.
TINY = {
    "xor_grokking": "--p 400 --n 24 --width 16 --jr 1.0",
    "comparison_to_ntk": f"{IMAGES} --width 8",
    "jacobian_rank": f"{IMAGES} --width 8 --jr 1e-3 --batch_size 16",
    "accelerating_grokking": f"{IMAGES} --width 16 --jr 1e-3 --batch_size 16 --order shuffled "
    "--grokfast --adv_training --jr_fraction 0.5",
    "inhibiting_generalisation": f"{IMAGES} --width 16 --jr 5.0 --batch_size 16",
    "linear_regions": f"{IMAGES} --width 8 --init_scale 1 --half_width 1 --num_logs 4",
    "modular_addition": "--p 11 --d_model 16 --d_mlp 16 --jr 1e-3 --warmup 5",
    "spectral_shift": "--p 11 --width 16 --laplacian_penalty 0.1",
    "norm_minimisation": "--p 7 --width 64 --sgd --lr 0.02",
    "circuit_efficiency": "--p 5 --width 24 --least_pairs 6 --most_pairs 20 --sizes 3 --seeds 2",
    "sparse_parity": "--n 12 --width 20 --samples 70 --test_samples 30 --jr 0.01",
    "sequence_copying": "--samples 10 --test_samples 20 --jr 0.01 --batch 4",
    "order_parameters": "--p 11 --width 16",
    "delayed_robustness": "--points 12 --filters 2 --batch_size 5 --attack_points 4 "
    "--num_attacks 2 --jr 0.001",
    "accelerate": "--task sparse_parity --method grokfast_ema --knobs alpha=0.9",
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
