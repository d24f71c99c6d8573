"""What training in the span saves: one update of Figure 4 against a plain reference update.

The reference is written out below: autograd in all 40,000 dimensions, and a forward pass of its
own for the regulariser, as in the paper's repository. Both start from the same data and weights.

    python benchmarks/xor_step.py
"""

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import xor_grokking
from lab.fast.span import plain, span
from utils import JacobianRegulariser

REPEATS = {"reference": 3, "span": 15}


def reference_update(w1, w2, x, y, optimiser, jr):
    """One update in p dimensions; the regulariser makes its own forward pass."""
    loss = (torch.relu(x @ w1.T) @ w2 - y).square().mean()
    if jr:
        points = x.clone().requires_grad_()
        outputs = torch.relu(points @ w1.T) @ w2
        (rows,) = torch.autograd.grad(outputs.sum(), points, create_graph=True)
        loss = loss + jr * rows.norm(dim=1).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss


def span_update(network, regulariser, parameters, x, y, optimiser, jr):
    """The update of xor_grokking.py."""
    if jr:
        outputs, norm = regulariser.outputs_and_norm(x)
        loss = (outputs - y).square().mean() + jr * norm
    else:
        loss = (network(x) - y).square().mean()
    optimiser.zero_grad(set_to_none=False)
    loss.backward(inputs=parameters)
    optimiser.step()
    return loss


def seconds(update, repeats):
    """Median over the repeats, after one update that is not counted; and the first loss."""
    first, times = update().item(), []
    for _ in range(repeats):
        began = time.perf_counter()
        update().item()
        times.append(time.perf_counter() - began)
    return statistics.median(times), first


def main():
    """Prints seconds a step both ways, and their ratio."""
    o = xor_grokking.Options()
    x, y, x_test, _ = xor_grokking.xor_clusters(o)
    w2 = torch.linspace(-1, 1, o.width, dtype=torch.float64) * o.width**-0.5
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, p = {o.p}")
    print("regulariser   reference s/step   span s/step   ratio   loss (both)")
    for jr in (0.0, 1.0):
        full = plain(x, x_test, lambda: xor_grokking.first_layer(o))
        w1, second = torch.nn.Parameter(full.weights), torch.nn.Parameter(w2.clone())
        sgd = torch.optim.SGD([w1, second], lr=o.lr, weight_decay=o.weight_decay)
        slow, slow_loss = seconds(
            lambda w1=w1, second=second, sgd=sgd, jr=jr: reference_update(
                w1, second, x, y, sgd, jr
            ),
            REPEATS["reference"],
        )
        del full, w1, sgd

        small = span(x, x_test, lambda: xor_grokking.first_layer(o), kept=xor_grokking.SIGNAL)
        network = xor_grokking.Network(small.weights, w2.clone(), small.support)
        parameters = list(network.parameters())
        sgd = torch.optim.SGD(parameters, lr=o.lr, weight_decay=o.weight_decay, fused=True)
        regulariser = JacobianRegulariser(network)
        fast, fast_loss = seconds(
            lambda n=network, r=regulariser, p=parameters, s=small, sgd=sgd, jr=jr: span_update(
                n, r, p, s.points, y, sgd, jr
            ),
            REPEATS["span"],
        )
        assert abs(slow_loss - fast_loss) < 1e-9 * slow_loss
        print(f"jr = {jr:<8}  {slow:16.2f}   {fast:11.3f}   {slow / fast:5.0f}   {fast_loss:.12f}")


if __name__ == "__main__":
    main()
