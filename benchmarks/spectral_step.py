"""What the Laplacian penalty costs a training step, against plain steps in the same run.

    python benchmarks/spectral_step.py

Steps of the MLP of spectral_shift.py, timed in turns, the fastest of each: on the training pairs
only; on the logits of all pairs, the loss taken from the training pairs'; and the same with the
penalty on these logits. The penalty's own price is the third over the second. It needs the logits
of all pairs, and their price is the second over the first.

Result, one thread of a shared machine: 3.83, 6.11 and 8.50 ms at 35, 46 and 34 % of the matrix
rate, so that the penalty costs 1.39 times a step with the same forward pass, and 2.2 times one on
the training pairs only.
"""

import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import clock_of, command_line, in_turns, present_device, settle, table
from lab.bench.cli import script
from lab.bench.seeds import generator
from lab.data.modular import modular_addition
from lab.measures import spectra
from lab.networks.modular_mlp import ModularMLP

TARGET = 1.6  # penalised step over a step with the same forward pass


@script
def main(argv=None) -> None:
    parser = command_line(
        __doc__,
        p=(43, "modulus, a prime"),
        width=(256, "hidden units"),
        rounds=(20, "turns that each step has"),
    )
    parser.add_argument(
        "--device", type=present_device, default="cpu", help="cpu, cuda, … (default: cpu)"
    )
    o = parser.parse_args(argv)
    settle()

    task = modular_addition(o.p, 0.5, seed=0)
    network = ModularMLP(o.p, o.width, 0.0, generator(0, "network")).to(o.device, torch.float32)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1.0, fused=True)
    train_set = task.train.to(o.device)
    pairs, labels = (part[task.train].to(o.device) for part in (task.pairs, task.labels))
    places = torch.randperm(o.p**2, generator=generator(0, "torus")).to(o.device)
    cross_entropy = torch.nn.functional.cross_entropy

    def from_all(penalised: bool, places: torch.Tensor | None = None) -> torch.Tensor:
        logits = network.grid()
        loss = cross_entropy(logits.flatten(0, 1).index_select(0, train_set), labels)
        return loss + spectra.laplacian_energy(logits, places) if penalised else loss

    losses = {
        "training pairs only": lambda: cross_entropy(network(pairs), labels),
        "logits of all pairs": lambda: from_all(penalised=False),
        "with the penalty": lambda: from_all(penalised=True),
        "with the permuted penalty": lambda: from_all(penalised=True, places=places),
    }

    def step(loss) -> None:
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()

    steps = {name: partial(step, loss) for name, loss in losses.items()}
    timed = in_turns(steps, o.rounds, clock_of(o.device))
    print(f"p = {o.p}, width {o.width}, {o.device}, torch {torch.__version__}, 1 thread")
    table("ratio to the training pairs only", timed)
    plain, penalised = (timed[name].seconds for name in ("logits of all pairs", "with the penalty"))
    print(f"with the penalty to all pairs: {penalised / plain:.2f}, target: at most {TARGET}")


if __name__ == "__main__":
    raise SystemExit(main())
