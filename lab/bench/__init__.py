"""What every script stands on: options, run folders, the training loop, plots, seeds, exit codes.

Holds no data, network or measure. The other rooms may use this one. Here are the names that a
script takes from it; the rest, one module a subject, is for the rooms.
"""

from lab.bench.cli import script
from lab.bench.errors import TrainingError, UserError
from lab.bench.loop import training
from lab.bench.options import option, parse
from lab.bench.precision import double
from lab.bench.runs import Run
from lab.bench.seeds import generator
from lab.bench.shared import Shared
from lab.bench.snapshots import Snapshots

__all__ = [
    "Run", "Shared", "Snapshots", "TrainingError", "UserError", "double", "generator", "option",
    "parse", "script", "training",
]  # fmt: skip
