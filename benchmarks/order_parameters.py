"""What all order parameters together cost, in training steps of order_parameters.py.

    python benchmarks/order_parameters.py

A step is one full-batch update on the training pairs. The order parameters are those of one
measurement; the centred alignments, of all p² pairs, give the participation ratio as well. Timed
in turns, the fastest of each. Then the plain way to the centred trace kernel's alignment, in which
the n × n kernel of n drawn pairs is formed: its time grows with n².

Result, one CPU thread: a step 20 ms, at 73 % of the matrix rate; all order parameters 22 steps, of
them 18 the centred alignments of all 9,409 pairs, at 74 %. The plain kernel takes 8.6 for 2,000.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import command_line, in_turns, settle, table
from lab.bench.cli import script
from lab.bench.seeds import generator
from lab.data.modular import modular_addition
from lab.measures import orders
from lab.networks.modular_mlp import ModularMLP

TARGET = 40  # training steps


def plain_trace_alignment(network, pairs, labels):
    """Centred alignment of the trace kernel of these pairs, with the kernel in memory."""
    one_hot = torch.nn.functional.one_hot(pairs + network.offsets, 2 * len(network.second))
    x = one_hot.sum(1).to(network.rows)
    hidden = (network.scale * (x @ network.rows + network.first_bias)).relu()
    gates = (hidden > 0) * network.second.square().sum(0).sqrt()
    kernel = len(network.second) * (hidden @ hidden.T + 1)
    kernel += network.scale**2 * (x @ x.T + 1) * (gates @ gates.T)
    target = orders.label_kernel(labels).to(kernel)
    for each in (kernel, target):
        each -= each.mean(0)
        each -= each.mean(1, keepdim=True)
    return orders.kernel_alignment(kernel, target)


@script
def main(argv=None) -> None:
    """Prints milliseconds and training steps of each order parameter, and their sum."""
    parser = command_line(
        __doc__,
        p=(97, "modulus, a prime"),
        width=(512, "hidden units"),
        rounds=(5, "turns"),
        plain=(2000, "pairs of the plain kernel"),
    )
    o = parser.parse_args(argv)
    settle()

    task = modular_addition(o.p, 0.3, seed=0)
    network = ModularMLP(o.p, o.width, 0.0, generator(0, "network")).float()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1.0, fused=True)
    pairs, labels = task.pairs[task.train], task.labels[task.train]
    drawn = torch.randperm(o.p**2, generator=generator(0, "subset"))
    subset, few = drawn[:500], drawn[: o.plain]
    ideal = orders.label_kernel(task.labels[subset])

    def step():
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(pairs), labels).backward()
        optimiser.step()

    def halves():
        return network.rows.split(o.p)

    measures = {
        "RQI, parallelograms": lambda: orders.parallelogram_quality(*halves()),
        "RQI, distances": lambda: orders.distance_quality(torch.cat(halves(), dim=1)),
        "effective ranks": lambda: orders.effective_rank(torch.linalg.svdvals(network.rows)),
        "alignment, summed logits": lambda: orders.kernel_alignment(
            orders.summed_logits_kernel(network, task.pairs[subset]), ideal
        ),
        "centred alignments": lambda: orders.participation_ratio(
            orders.centred_kernel_alignments(network, task.labels).covariance
        ),
        "SNR against the constant": lambda: orders.constant_snr(*halves()),
        "SNR of the neurons": lambda: orders.neuron_snr(torch.cat(halves(), dim=1)),
    }
    measures[f"plain kernel, {len(few):,} pairs"] = lambda: plain_trace_alignment(
        network, task.pairs[few], task.labels[few]
    )
    without_graph = {name: torch.no_grad()(call) for name, call in measures.items()}
    timed = in_turns({"step": step, **without_graph}, o.rounds)
    print(f"p = {o.p}, width {o.width}, torch {torch.__version__}, 1 thread")
    table("ratio to a training step", timed)
    unit, *each, _ = (found.seconds for found in timed.values())
    print(f"all order parameters: {sum(each) / unit:.2f} steps, target: at most {TARGET}")


if __name__ == "__main__":
    raise SystemExit(main())
