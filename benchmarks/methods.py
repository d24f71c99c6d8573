"""What an update of each method costs on each task of the leaderboard: lab/methods/.

    python benchmarks/methods.py                     # a table, and runs/accelerate/costs.csv
    python benchmarks/methods.py results/accelerate  # its folder

All methods of a task are trained in one process, with their sources' settings, in turns of a few
updates, so that what else the machine does falls on all alike; a number is the least of the turns,
of this thread's own time.
"""

import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import command_line, in_turns, settle, writable_folder
from lab.bench.cli import script
from lab.bench.errors import UserError
from lab.bench.files import write_rows
from lab.methods.interface import methods
from lab.methods.tasks import TASKS
from lab.methods.trials import given

WARM_UP, TURNS, UPDATES = 110, 12, 10  # Grokfast-MA waits for 100 gradients


class Training:
    """The loop of accelerate.py, which can be gone on with."""

    def __init__(self, method, task):
        settings = given(method, None, None, ())
        self.task, self.method = task, method(task, settings)
        self.optimiser = self.method.optimiser(settings["lr"], settings["weight_decay"])

    def __call__(self, updates):
        x, y = self.task.data[:2]
        for _ in range(updates):
            loss = self.method.loss(x, y)
            self.optimiser.zero_grad()
            loss.backward(inputs=self.method.parameters)
            self.method.filter_gradients()
            self.optimiser.step()
            self.method.project_weights()


def costs(name):
    """Time of a few updates, by method, and its share of the matrix rate."""
    trainings = {}
    for method, kind in methods().items():
        task = TASKS[name](0, "data").to(torch.device("cpu"), torch.float32)
        try:
            trainings[method] = Training(kind, task)
        except UserError:
            continue  # the method cannot do the task
        trainings[method](WARM_UP)
    # Some methods do more in some updates than in others.
    return in_turns({m: partial(training, UPDATES) for m, training in trainings.items()}, TURNS)


@script
def main(argv=None):
    """Prints milliseconds and ratios to AdamW, and writes the milliseconds."""
    parser = command_line(__doc__)
    text = "folder of costs.csv (default: runs/accelerate)"
    parser.add_argument(
        "folder", nargs="?", type=writable_folder, default="runs/accelerate", help=text
    )
    path, rows = parser.parse_args(argv).folder / "costs.csv", []
    settle()
    print(f"torch {torch.__version__}, 1 thread, float32; milliseconds an update, ratio to AdamW")
    print("and share of the matrix rate")
    for name in TASKS:
        if name == "omnigrok_mnist":
            continue  # which needs a download
        found = costs(name)
        for method, (seconds, share) in found.items():
            taken, ratio = 1e3 * seconds / UPDATES, seconds / found["adamw"].seconds
            rows.append({"task": name, "method": method, "milliseconds": f"{taken:.4g}"})
            print(f"{name:20} {method:24} {taken:8.3f} {ratio:6.2f} {share:6.0%}")
    write_rows(path, rows)  # at the end, so that an interrupted table leaves the one before
    print(path)


if __name__ == "__main__":
    raise SystemExit(main())
