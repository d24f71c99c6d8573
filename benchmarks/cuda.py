"""What the scripts do on a CUDA device: do they agree with the CPU, repeat themselves, and gain?

    python benchmarks/cuda.py --stage 1    # agree: every script, tiny, against the CPU
    python benchmarks/cuda.py --stage 2    # captured against eager, interrupted against not
    python benchmarks/cuda.py --stage 3    # speed: eager, captured, one CPU thread
    python benchmarks/cuda.py --stage 4    # the paper's long runs, for --seconds; again: goes on

Each prints a table and writes stage_N.json into --out_dir, row by row, and is meant to stay under
ten minutes; exit code 1 if something differs or fails, which ends no stage. With --device cpu the
first three are a dry run, the CPU against itself. Images are random, but those of the fourth stage,
which are read from --data_dir. Result: not run on a CUDA device yet.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._cuda_runs import MPS, SWEEP, apart, found, lost, run, several
from benchmarks.timing import at_least, command_line, present_device
from helpers import TINY
from lab.bench import loop

FLOWS = ("norm_minimisation", "circuit_efficiency")
EAGER = (*FLOWS, "accelerate")  # never captured; compared in float64 alone
COMPARED = ("loss", "test_loss", "train_error", "squared_norm", "alignment", "jacobian_norm")
LIMITS = {"float64": (1e-9, 1e-10), "float32": (1e-4, 1e-4)}  # relative differences, those of PC1
FLOW = 1e-6  # the limit for a flow, whose error is what a ridge of 1e-8 leaves of a difference
SPEED = {  # at the paper's sizes: script -> options, what adds the regulariser
    "xor_grokking": ("--p 4000", "--jr 1.0"),  # as wide in the span as with 40,000
    "comparison_to_ntk": ("", None), "order_parameters": ("", None),
    "jacobian_rank": ("", "--jr 1e-3"), "accelerating_grokking": ("", "--jr 1e-3"),
    "inhibiting_generalisation": ("--jr none", "--jr 0"), "modular_addition": ("", "--jr 1e-3"),
    "spectral_shift": ("", "--laplacian_penalty 0.1"), "sparse_parity": ("", "--jr 0.1"),
    "sequence_copying": ("", "--jr 0.01"), "delayed_robustness": ("--attack none", "--jr 0.001"),
}  # fmt: skip
LONG = (  # most wanted first
    "configs/table_1.yaml --per_device 8 --data_dir {data_dir}",
    "delayed_robustness.py --jr 0 0.001 --per_device 2 --data_dir {data_dir}",
    "configs/figure_8.yaml --per_device 2",
    "configs/figure_9.yaml --per_device 2",
    "configs/figure_9_caption.yaml --per_device 2",
)


def agree(o, folder):
    """Stage 1: 20 updates of every script, with the CPU's draws, and the CPU's."""
    for script in o.scripts:
        for dtype in ("float64",) if script in EAGER else LIMITS:
            yield {"script": script, "dtype": dtype}, partial(agreement, o, folder, script, dtype)


def agreement(o, folder, script, dtype):
    line = f"{TINY[script]} --dtype {dtype} --num_logs 4 --draws cpu"
    drawn = dtype == "float64"  # so that a script is seen to its end
    m, weights = found(run(script, line, f"{folder}/{dtype}", o.device, drawn=drawn))
    expected, expected_weights = found(run(script, line, f"{folder}/{dtype}_cpu", "cpu"))
    row = {"weights": apart(weights, expected_weights)}
    row["metrics"] = max(apart(m[c], expected[c]) for c in COMPARED if c in m)
    pc1 = apart(m["pc1"], expected["pc1"]) if "pc1" in m else 0.0
    most, most_of_pc1 = LIMITS[dtype]
    right = max(row.values()) <= (FLOW if script in FLOWS else most) and pc1 <= most_of_pc1
    yield {**row, "pc1": pc1, "right": right}


def repeat(o, folder):
    """Stage 2: captured and eager, interrupted and not, are the same to the bit."""
    for script in (script for script in o.scripts if script not in EAGER):
        yield {"script": script}, partial(repetition, o, folder, script)


def repetition(o, folder, script):
    line = f"{TINY[script]} --steps 24 --num_logs 8"
    whole = found(run(script, line, f"{folder}/whole", o.device))
    eager = found(run(script, f"{line} --eager", f"{folder}/eager", o.device))
    run(script, f"{line} --checkpoint_every 0", f"{folder}/parts", o.device, lost)
    parts = found(run(script, line, f"{folder}/parts", o.device))
    row = {"weights": apart(eager[1], whole[1])}
    for name, (m, weights) in (("captured_is_eager", eager), ("continued_is_whole", parts)):
        same = all(numpy.array_equal(m[c], whole[0][c], equal_nan=True) for c in m)
        row[name] = same and numpy.array_equal(weights, whole[1])
    yield {**row, "right": row["captured_is_eager"] and row["continued_is_whole"]}


def moment(device):
    """Now: an event on the device's stream, seconds on a CPU."""
    if device == "cpu":
        return time.perf_counter()
    return torch.cuda.current_stream(device).record_event(torch.cuda.Event(enable_timing=True))


def median(moments):
    """Seconds between two, without the first quarter, in which graphs are captured."""
    later = moments[len(moments) // 4 :]
    if isinstance(later[0], float):
        return float(numpy.median(numpy.diff(later)))
    later[-1].synchronize()
    return float(numpy.median([a.elapsed_time(b) for a, b in pairwise(later)])) / 1e3


def seconds_of_an_update(o, script, options, folder, device):
    """The median, with all that the loop does between measurements."""
    moments, seconds = [], []

    def update(progress):  # in the place of the bar's
        moments.append(moment(device))
        seconds.append(time.perf_counter())
        late = len(moments) > 4 and seconds[-1] - seconds[0] > o.each
        if late or len(moments) > o.updates:
            raise KeyboardInterrupt

    with mock.patch.object(loop.Progress, "update", update):
        line = f"{options} --steps 1000000 --checkpoint_every 1000 --overwrite"
        run(script, line, folder, device, measured=())
    return median(moments)


def ceilings(o):
    """TFLOP/s of products of matrices, GB/s of copies."""
    a, n = torch.randn(o.product, o.product, device=o.device), o.product
    b, double = torch.empty_like(a), a.double()
    row = {"tflops_float32": 2e-12 * n**3 / seconds_of(o, lambda: a @ a)}
    row["tflops_float64"] = 2e-12 * n**3 / seconds_of(o, lambda: double @ double)
    yield {**row, "gb_per_s": 8e-9 * n**2 / seconds_of(o, lambda: b.copy_(a)), "right": True}


def seconds_of(o, work):
    return median([(work(), moment(o.device))[1] for _ in range(12)])


def speed(o, folder):
    """Stage 3: milliseconds of an update, and ratios; `over_plain` is the regulariser's price."""
    torch.set_num_threads(1)
    yield {}, partial(ceilings, o)
    for script in o.speed:
        yield {"script": script}, partial(speed_of, o, folder, script)
    for shared in (False, True) if shutil.which(MPS) and o.device != "cpu" else (False,):
        for count in o.processes:
            place = f"{folder}/several_{count}_{shared}"
            yield {"processes": count, "mps": shared}, partial(several, o, count, place, shared)


def speed_of(o, folder, script):
    (options, more), plain = o.speed[script], None
    for line in (options, f"{options} {more}") if more else (options,):
        ways = {"eager": (" --eager", o.device), "captured": ("", o.device), "cpu": ("", "cpu")}
        took = {
            name: seconds_of_an_update(o, script, line + how, f"{folder}/{name}", device)
            for name, (how, device) in ways.items()
        }
        plain = plain or took["captured"]
        row = {"options": line} | {f"{k}_ms": 1e3 * v for k, v in took.items()}
        row |= {f"{k}_over_captured": took[k] / took["captured"] for k in ("eager", "cpu")}
        yield {**row, "over_plain": took["captured"] / plain, "right": True}


def long_runs(o, folder):
    """Stage 4: what is left of the paper's runs, until the time is up; all of it is saved."""
    ends = time.monotonic() + o.seconds
    for grid in o.long:
        if ends > time.monotonic():
            yield {"grid": grid}, partial(long_run, o, grid, ends)


def long_run(o, grid, ends):
    line = f"{grid} --device {o.device} --out_dir {o.runs} --checkpoint_every 30"
    words, began = line.format(data_dir=o.data_dir).split(), time.monotonic()
    process = subprocess.Popen([*SWEEP, *words], stdout=subprocess.DEVNULL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(ends - began)
    process.terminate()  # which its runs are told; nothing if it has ended
    process.wait()
    told = subprocess.run([*SWEEP, *words, "--dry_run"], capture_output=True, text=True)
    if told.returncode:
        raise SystemExit(told.stderr)
    (count,) = (each for each in told.stdout.splitlines() if each.endswith("of them finished"))
    yield {"there": count, "seconds": time.monotonic() - began, "right": True}


STAGES = {1: agree, 2: repeat, 3: speed, 4: long_runs}


def rows_of(parts):
    """What the parts of a stage give; of one that fails, why, since the others may not."""
    for of, work in parts:
        try:
            yield from ({**of, **row} for row in work())
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            yield {**of, "error": f"{type(error).__name__}: {error}", "right": False}


def main(argv=None, **sizes):
    parser = command_line(__doc__)
    parser.add_argument("--stage", type=int, required=True, choices=STAGES, help="1, 2, 3 or 4")
    for name, default, kind, text in (
        ("--device", "cuda", present_device, "cuda, cuda:1, or cpu for a dry run"),
        ("--out_dir", "results/cuda", str, "folder of the tables, stage_N.json"),
        ("--runs", "runs/cuda", str, "folder of stage 4's runs, which are kept and gone on with"),
        ("--data_dir", "data", str, "folder of the images that stage 4 reads"),
        ("--seconds", 540, at_least(0, float), "how long stage 4 may take; saving comes on top"),
        ("--only", None, str, "one script alone, of stages 1 to 3 (default: all)"),
    ):
        text += " (default: %(default)s)" if default else ""
        parser.add_argument(name, type=kind, default=default, help=text)
    o = parser.parse_args(argv)
    dry = o.device == "cpu"
    o.scripts, o.speed, o.long = list(TINY), SPEED, LONG
    o.updates, o.each = (30, 2) if dry else (400, 2)  # most updates and seconds of a measurement
    o.processes, o.several_steps = ((1, 2), 500) if dry else ((1, 4, 8), 10_000)
    o.product = 512 if dry else 4096
    vars(o).update(sizes)
    if o.only is not None:
        if o.only not in TINY:
            parser.error(f"argument --only: takes {', '.join(TINY)}, got {o.only!r}")
        o.scripts, o.processes = [o.only], ()
        o.speed = {script: of for script, of in o.speed.items() if script == o.only}
    name = "the CPU against itself" if dry else torch.cuda.get_device_name(o.device)
    print(f"stage {o.stage}, {name}, torch {torch.__version__}")
    rows, path = [], Path(o.out_dir) / f"stage_{o.stage}.json"
    with tempfile.TemporaryDirectory() as folder:
        for row in rows_of(STAGES[o.stage](o, folder)):
            rows.append(row)
            cells = ((k, f"{v:.3g}" if isinstance(v, float) else v) for k, v in row.items())
            print(*(f"{k} {v}" for k, v in cells), sep=", ", flush=True)
            content = {"stage": o.stage, "device": name, "torch": torch.__version__, "rows": rows}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=1) + "\n")
    wrong = sum(not row["right"] for row in rows)
    print(f"{wrong} of {len(rows)} rows are not as they should be; {path}")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
