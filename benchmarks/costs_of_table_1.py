"""What an update of each method of Table 1 costs, from which its speed-ups in time are made.

    python benchmarks/costs_of_table_1.py                                # and runs/…/costs.csv
    python benchmarks/costs_of_table_1.py results/accelerating_grokking  # its folder

The loop of accelerating_grokking.py, all methods in one process, in turns of a few updates, so that
what else the machine does falls on all alike; a number is the least of the turns, as the runs count
it: of this thread's own time, without measurements. Three minutes.
"""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import accelerating_grokking as script_of_table_1
from benchmarks.timing import command_line, settle, writable_folder
from lab.bench.cli import script
from lab.bench.files import write_rows
from lab.bench.runs import Run
from lab.bench.seeds import generator
from lab.data.images import CLASSES, Images
from lab.reports.table_1 import COSTS, SCRIPT, method_of

POINTS, UPDATES, TURNS = 1024, 40, 8
LAMBDAS = {"CrossEntropy": 1e-3, "MSE": 1e-4}  # the paper's λ_Jac
METHODS = ({}, {"jr": True}, {"grokfast": True}, {"adv_training": True})
# Ours, of which the page has runs under the cross-entropy in float32.
OTHERS = ({"jr": True, "num_projections": "exact", "jr_fraction": 0.25}, {"optimiser": "muon"})


def kinds():
    """(options) of every row that the page has."""
    for dtype in ("float64", "float32"):
        for loss_fn, jr in LAMBDAS.items():
            for method in METHODS + OTHERS * (loss_fn == "CrossEntropy" and dtype == "float32"):
                given = {**method, "jr": jr} if "jr" in method else method
                yield {"dtype": dtype, "loss_fn": loss_fn, **given}


def seconds_of(name, options, pixels, y, folder):
    """Of a run of a few updates."""
    o = script_of_table_1.Options(
        steps=UPDATES, num_logs=2, check_every=UPDATES, stop_at=None, device="cpu",
        out_dir=folder, name=name, quiet=True, **options,
    )  # fmt: skip
    x = pixels.to(o.torch_dtype())
    run = Run(SCRIPT, o)
    script_of_table_1.train(run, o, Images(x, y, x, y))
    return run.seconds


@script
def main(argv=None):
    """Prints milliseconds and ratios to the baseline, and writes the milliseconds."""
    parser = command_line(__doc__)
    text = f"folder of {COSTS} (default: runs/{SCRIPT})"
    default = f"runs/{SCRIPT}"
    parser.add_argument("folder", nargs="?", type=writable_folder, default=default, help=text)
    path = parser.parse_args(argv).folder / COSTS
    settle()
    draws = generator(0)
    # Ten clusters, which are learnt within the first epochs, as MNIST's training points are.
    y = torch.randint(0, CLASSES, (POINTS,), generator=draws)
    centres = torch.randn(CLASSES, 784, generator=draws)
    pixels = centres[y] + torch.randn(POINTS, 784, generator=draws)
    least = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS):
            for i, options in enumerate(kinds()):
                seconds = seconds_of(f"{i} {turn}", options, pixels, y, folder)
                least[i] = min(seconds, least.get(i, seconds))
    rows, baseline = [], None
    print(f"torch {torch.__version__}, 1 thread; milliseconds an update, ratio to the baseline")
    for i, options in enumerate(kinds()):
        o = script_of_table_1.Options(**options)
        method, taken = method_of(vars(o)), 1e3 * least[i] / UPDATES
        baseline = baseline if method else taken
        kind = {"dtype": o.dtype, "loss_fn": o.loss_fn, "method": method}
        rows.append({**kind, "milliseconds": f"{taken:.4g}"})
        shown = f"{o.dtype} {o.loss_fn:13} {method or 'baseline':50}"
        print(f"{shown}{taken:8.3f}{taken / baseline:7.2f}")
    write_rows(path, rows)  # at the end, so that an interrupted table leaves the one before
    print(path)


if __name__ == "__main__":
    raise SystemExit(main())
