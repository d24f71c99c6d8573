"""What the measurements cost, against the loops over points that they replace.

The plain references are written out below: for the kernel of one point against 1,024 the gradients
of each pair, or of each point; for the explained variance one Jacobian a point and its singular
values. Times are CPU times of this process on one thread, which other work on the machine hardly
changes; the least of several.

    python benchmarks/geometry.py

Result in float64, one thread of a shared machine: the closed form takes 67 and 134 times less than
the loops, at 80 to 92 % of the matrix rate, one jvp 23 and 40 times less, at 82 to 88 %; the
explained variance 9 times less, at 45 %, the rest of which are elementwise passes and eigenvalues.
"""

import functools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import command_line, in_turns, settle
from lab.bench.seeds import generator
from lab.measures.kernels import kernel_row, relu_kernel_row
from lab.networks.mlp import relu_mlp
from utils import PC1


def gradient(network, point):
    """∇_θ f of one point, by a backward pass of its own."""
    found = torch.autograd.grad(network(point[None]).sum(), list(network.parameters()))
    return torch.cat([part.flatten() for part in found])


def kernel_of_pair(network, x, other):
    """Θ(x, x') from both gradients."""
    return gradient(network, x) @ gradient(network, other)


def kernel_by_loop(network, x, others):
    """Θ(x, x') with the gradient at x taken once."""
    at_x = gradient(network, x)
    return torch.stack([gradient(network, point) @ at_x for point in others])


def explained_by_loop(network, points):
    """σ₁² / Σσ² of one Jacobian after the other."""
    values = []
    for point in points:
        rows = torch.autograd.functional.jacobian(lambda z: network(z[None])[0], point)
        squares = torch.linalg.svdvals(rows).square()
        values.append(squares[0] / squares.sum())
    return torch.stack(values)


def compare(name, plain, fast):
    """Prints the least times, their ratio, our share and the largest difference of the results."""
    difference = (plain() - fast()).abs().max().item()
    slow, ours = in_turns({"plain": plain, "fast": fast}, rounds=3).values()
    print(
        f"{name:44} {1e3 * slow.seconds:10.2f} {1e3 * ours.seconds:9.2f}"
        f" {slow.seconds / ours.seconds:7.0f} {ours.share:12.0%}   {difference:.0e}"
    )


def main(argv=None):
    """Prints milliseconds both ways, their ratio, our share and the largest difference."""
    command_line(__doc__).parse_args(argv)
    settle()
    draws = generator(0)
    print(f"torch {torch.__version__}, 1 thread")
    print(f"{'':44} {'loop, ms':>10} {'ours, ms':>9} {'ratio':>7} {'matrix rate':>12}   difference")
    for dtype in (torch.float64, torch.float32):
        print(dtype)
        x = torch.randn(1024, 784, generator=draws, dtype=dtype)
        scalar = relu_mlp([784, 64, 1], draws).to(dtype)
        loops = {
            "both gradients a pair": lambda x=x, f=scalar: torch.stack(
                [kernel_of_pair(f, x[0], point) for point in x]
            ),
            "one gradient a point": lambda x=x, f=scalar: kernel_by_loop(f, x[0], x),
        }
        for name, plain in loops.items():
            for way, row in (("closed form", relu_kernel_row), ("one jvp", kernel_row)):
                fast = functools.partial(row, scalar, x[0], x)
                compare(f"kernel, {name} / {way}", plain, fast)
        pc1 = PC1(relu_mlp([784, 196, 196, 196, 10], draws).to(dtype))
        compare(
            "PC1 of 64 points",
            lambda x=x, f=pc1.model: explained_by_loop(f, x[:64]),
            functools.partial(pc1, x[:64]),
        )


if __name__ == "__main__":
    main()
