"""What a step of modular_addition.py costs, against the naive transformer's.

    python benchmarks/modular_step.py

Full-batch steps at p = 113, timed in turns, the fastest of each. Plain: all three queries of every
pair, as Nanda et al.'s code has it; the last one alone; scores and values from tables. With the
regulariser: all three queries, in one forward pass for the loss and one for the Jacobian, as the
official code has it; the last one alone, in one pass for both; tables, and the Jacobian by hand
below them. Outputs and norms are compared before anything is timed.

Result, one CPU thread: 299, 136 and 64 ms, a ratio of 0.21, at 64, 59 and 74 % of the matrix rate;
with the regulariser 908, 301 and 178 ms, a ratio of 0.20, at 60, 55 and 67 %.
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
from lab.fast.modular_tables import ModularRegulariser, ModularTransformer
from lab.networks.transformer import OneLayerTransformer
from utils import JacobianRegulariser

TARGETS = {"plain": 0.4, "regularised": 0.35}  # from tables over naive


@script
def main(argv=None) -> None:
    parser = command_line(
        __doc__, p=(113, "modulus, a prime"), rounds=(15, "turns that each step has")
    )
    parser.add_argument(
        "--device", type=present_device, default="cpu", help="cpu, cuda, … (default: cpu)"
    )
    o = parser.parse_args(argv)
    settle()

    task = modular_addition(o.p, 0.3, seed=0)
    network = ModularTransformer(o.p, 128, 4, 512, generator(0, "network")).to(o.device)
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1.0, fused=True)
    pairs, labels = (part[task.train].to(o.device) for part in (task.pairs, task.labels))
    tokens = torch.nn.functional.pad(pairs, (0, 1), value=o.p)

    def loss_of(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits.double(), labels)

    def queries(last: int):
        return lambda points: network.from_embeddings(points, last)[:, -1]

    def regulariser(last: int) -> JacobianRegulariser:
        return JacobianRegulariser(queries(last), generator=generator(0, "projections"))

    def naive():
        return OneLayerTransformer.forward(network, tokens, 3)[:, -1]

    of_all, of_last = regulariser(3), regulariser(1)
    of_tables = ModularRegulariser(network, generator=generator(0, "projections"))
    plain = {
        "three queries": naive,
        "last query": lambda: OneLayerTransformer.forward(network, tokens)[:, -1],
        "tables": lambda: network(pairs),
    }
    regularised = {
        "three queries, two passes": lambda: (naive(), of_all(network.embed(tokens))),
        "last query, one pass": lambda: of_last.outputs_and_norm(network.embed(tokens)),
        "tables, one pass": lambda: of_tables.outputs_and_norm(pairs),
    }
    torch.testing.assert_close(*(plain[name]() for name in ("tables", "three queries")))
    first, *others = (each() for each in regularised.values())
    for other in others:
        torch.testing.assert_close(other, first)

    def step(outputs) -> None:
        made = outputs()
        loss = loss_of(made) if torch.is_tensor(made) else loss_of(made[0]) + 1e-3 * made[1]
        optimiser.zero_grad()
        loss.backward(inputs=parameters)
        optimiser.step()

    print(f"p = {o.p}, {len(pairs)} pairs, {o.device}, torch {torch.__version__}, 1 thread")
    for (kind, target), cases in zip(TARGETS.items(), (plain, regularised), strict=True):
        steps = {name: partial(step, outputs) for name, outputs in cases.items()}
        timed = in_turns(steps, o.rounds, clock_of(o.device))
        table(kind, timed)
        naive_step, *_, tables_step = (each.seconds for each in timed.values())
        print(
            f"  target: at most {target}{'' if tables_step <= target * naive_step else ', missed'}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
