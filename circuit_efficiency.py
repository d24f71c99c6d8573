"""Circuit efficiency: when does generalising cost less norm than memorising? (Varma et al. 2023)

Claims: the memorising circuit costs more the more there is to memorise and the generalising one
does not; where the two cost the same lies the critical dataset size, and beyond it networks
generalise. Cost is the squared norm ‖W₁‖² + ‖W₂‖² that is left of a two-layer network which fits
its training pairs exactly, when Musat's flow (lab/methods/flow.py) has brought it down to where it
hardly falls. Random labels can be memorised only; they are the price of memorising.

    python circuit_efficiency.py    # 4 min; an update is a flow: one size, seed, kind of labels

Verdict: results/circuit_efficiency/README.md.
"""

import math
from dataclasses import dataclass

import numpy
import torch
from torch.nn.functional import one_hot

from lab.bench import Run, Shared, UserError, generator, option, parse, script, training
from lab.data.modular import modular_addition
from lab.drawings.sizes import sizes_figure
from lab.measures.critical_size import critical_sizes, tables
from lab.methods.flow import ACTIVATIONS, RIDGE, ZeroLossFlow


@dataclass
class Options(Shared):
    """The grid of cells, and the flow of each."""

    p: int = option(23, "the modulus, a prime", least=2)
    least_pairs: int = option(110, "training pairs of the smallest set", least=1)
    most_pairs: int = option(320, "training pairs of the largest set", least=1)
    sizes: int = option(8, "sizes of the training set, evenly spaced", least=2)
    seeds: int = option(3, "seeds, from --seed on, for every size and kind of labels", least=1)
    tolerance: float = option(
        2e-3, "the flow ends when its squared norm falls by less than this share in a unit of time",
        above=0,
    )  # fmt: skip
    longest: float = option(60.0, "most units of time for a flow", above=0)
    width: int = option(512, "hidden units, at least as many as training pairs", least=1)
    activation: str = option("relu", "of the hidden units", choices=tuple(ACTIVATIONS))
    init_std: float = option(0.15, "standard deviation of the initial first layer", above=0)
    ridge: float = option(
        RIDGE, "added to H Hᵀ, in units of the mean of its diagonal; 0 for none", least=0
    )
    steps: int = option(0, None, least=0, names_run=False)  # cells, 2 × sizes × seeds
    num_logs: int = option(64, None, least=2, names_run=False)  # without effect: cells are recorded
    dtype: str = option("float64", "precision; float32 cannot invert H Hᵀ", choices=("float64",))


WINDOW = 1.0  # units of time over which the fall of the squared norm is taken
AGAINST = "pairs"
PANELS = {
    "least squared norm at zero loss": ("squared_norm",),
    "test accuracy": ("test_accuracy",),
}


def cells(o: Options) -> list[tuple[int, int, bool]]:
    """(pairs, seed, random labels) of each cell, one seed after the other."""
    if o.least_pairs >= o.most_pairs:
        raise UserError(
            f"--most_pairs takes more than --least_pairs, {o.least_pairs}, got {o.most_pairs}"
        )
    if o.sizes > o.most_pairs - o.least_pairs + 1:
        raise UserError(
            f"--sizes takes at most the {o.most_pairs - o.least_pairs + 1} sizes from "
            f"--least_pairs to --most_pairs, got {o.sizes}"
        )
    sizes = [round(n) for n in numpy.linspace(o.least_pairs, o.most_pairs, o.sizes)]
    grid = [
        (n, s, r) for s in range(o.seed, o.seed + o.seeds) for n in sizes for r in (False, True)
    ]
    if o.steps not in (0, len(grid)):
        raise UserError(f"--steps follows from --sizes and --seeds, {len(grid)} here; leave it out")
    return grid


def begin(o: Options, pairs: int, seed: int, random_labels: bool, device: torch.device):
    """Inputs of the test pairs, their labels, and the flow at its start."""
    if not pairs < o.p**2:
        raise UserError(f"--most_pairs takes less than all {o.p**2} pairs, got {pairs}")
    t = modular_addition(o.p, pairs / o.p**2, seed, random_labels)
    x = one_hot(t.pairs + torch.tensor([0, o.p]), 2 * o.p).sum(1).double()
    y = one_hot(t.labels, o.p).double() - 1 / o.p
    w1 = torch.empty(2 * o.p, o.width, dtype=torch.float64)
    w1.normal_(std=o.init_std, generator=generator(seed, "first layer"))
    flow = ZeroLossFlow(
        x[t.train].to(device), y[t.train].to(device), w1.to(device), o.activation, o.ridge
    )
    return x[t.test].to(device), t.labels[t.test].to(device), flow


def run_cells(run: Run, o: Options) -> None:
    grid, row = cells(o), dict[str, float]()
    # A cell's row is recorded before it can be saved as done, so that no state is left to keep.
    measured = range(1, len(grid) + 1)
    for step in training(run, lambda _: row, measured=measured, variant=None):  # noqa: B023
        pairs, seed, random_labels = grid[step]
        x_test, labels, flow = begin(o, pairs, seed, random_labels, run.device)
        squared_norm, count = float(flow.advance()), 1
        since, before, fall = 0.0, squared_norm, math.inf
        while fall > o.tolerance and flow.time < o.longest:
            now, squared_norm, count = flow.time, float(flow.advance()), count + 1
            if now - since >= WINDOW:
                fall = math.log(before / squared_norm) / (now - since)
                since, before = now, squared_norm
        end = flow.point()
        right = flow.outputs(x_test, end.w2).argmax(1) == labels
        row |= {"pairs": pairs, "seed": seed, "random_labels": random_labels}
        row |= {
            "squared_norm": float(end.squared_norms.sum()),
            "train_error": float((flow.outputs(flow.x, end.w2) - flow.y).square().mean()),
            "test_accuracy": float(right.double().mean()),
        }
        row |= {"time": flow.time, "fall": fall, "euler_steps": count}


@script
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    o.steps = len(cells(o))
    # The largest set shows before the run's folder is made whether the options fit together.
    begin(o, o.most_pairs, o.seed, False, o.torch_device())
    run = Run("circuit_efficiency", o)
    run_cells(run, o)
    t = tables(run.metrics(), o.seeds, o.sizes)
    found = critical_sizes(t)
    run.store(found)
    run.save_figure(sizes_figure(t, found["critical_pairs"], o.p**2, run.begun_by))
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
