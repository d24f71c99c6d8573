"""What the measurements cost, against the loops over points that they replace.

The plain references are written out below: for the kernel of one point against 1,024 the gradients
of each pair, or of each point; for the explained variance one Jacobian a point and its singular
values. Times are CPU times of this process on one thread, which other work on the machine hardly
changes; the least of several.

    python benchmarks/geometry.py
"""

import functools
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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


def compare(name, plain, fast, repeats=20):
    """Prints the least times, their ratio and the largest difference of the results."""
    difference = (plain() - fast()).abs().max().item()
    seconds = []
    for call, times in ((plain, 3), (fast, repeats)):
        taken = []
        for _ in range(times):
            began = time.process_time()
            call()
            taken.append(time.process_time() - began)
        seconds.append(min(taken))
    ratio = seconds[0] / seconds[1]
    print(f"{name:44} {seconds[0]:10.4f} {seconds[1]:10.4f} {ratio:7.0f}   {difference:.0e}")


def main():
    """Prints seconds both ways, their ratio and the largest difference."""
    torch.set_num_threads(1)
    draws = generator(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'':44} {'loop, s':>10} {'ours, s':>10} {'ratio':>7}   difference")
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
