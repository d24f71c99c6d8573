"""Figure 4: centroid alignment identifies delayed generalisation and robustness on XOR clusters.

A two-layer ReLU network of width 2048 learns x1 · x2 from 400 points in 40,000 dimensions, of
which all but the first two are noise (Section 4.2). Claim: centroid alignment rises when the
network generalises, and again when it becomes robust to noise; GrokAlign brings robustness sooner.

    python xor_grokking.py              # top row: weight decay only, 1 min
    python xor_grokking.py --jr 1.0     # bottom row: with GrokAlign, 3.3 min
    python sweep.py xor_grokking.py --jr 0 1.0 --seed 0:3    # three seeds of each

Trained exactly in the 2,450 dimensions that data and weights span; --full_dimension takes all.
Verdict: results/xor_grokking/README.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import mse_loss

from lab.bench import Run, Shared, generator, option, parse, script, training
from lab.drawings.robustness import robustness_figure
from lab.fast.span import FirstLayer, plain, span
from lab.measures.losses import accuracy
from lab.networks.mlp import uniform
from utils import Centroids, JacobianRegulariser


@dataclass
class Options(Shared):
    """Section 4.2's set-up."""

    p: int = option(40_000, "input dimensions: two of signal, the others noise", least=3)
    n: int = option(400, "training points, and as many test points", least=1)
    epsilon: float = option(0.05, "size of the noise entries, ±epsilon", least=0)
    width: int = option(2048, "hidden units", least=1)
    jr: float = option(0.0, "weight of the Jacobian regulariser, λ_Jac; the paper: 1.0", least=0)
    lr: float = option(0.1, "learning rate of full-batch gradient descent", above=0)
    weight_decay: float = option(0.1, "L2 decay of the weights, added to the gradient", least=0)
    full_dimension: bool = option(False, "train in all p dimensions instead of the span")
    steps: int = option(1000, "full-batch updates", least=0)
    dtype: str = option("float64", "precision of training", choices=("float32", "float64"))


NOISE = (0.2, 0.4, 0.6, 0.8, 1.0)  # standard deviations of the perturbations
SIGNAL = 2  # coordinates that carry the label
PANELS = {
    "accuracy": ("test_accuracy", "train_accuracy"),
    "accuracy under noise": ("accuracy_at_0.2", "accuracy_at_0.6", "accuracy_at_1.0"),
    "centroid alignment (mean)": ("alignment", "test_alignment"),
    "norm of a centroid": ("centroid_norm_of_point",),
}


def xor_clusters(o: Options) -> tuple[torch.Tensor, ...]:
    """Training and test points (n, p), float64, and their labels (n,) in {−1, 1}."""
    draws = generator(o.seed, "data")
    sets = []
    for _ in ("train", "test"):
        signs = torch.randint(0, 2, (o.n, o.p), generator=draws, dtype=torch.int8).mul_(2).sub_(1)
        x = signs.double()
        x[:, SIGNAL:] *= o.epsilon
        sets += [x, x[:, 0] * x[:, 1]]
    return tuple(sets)


def first_layer(o: Options) -> Iterator[torch.Tensor]:
    """Initial first-layer weights (width, p), uniform in ±1/√p, in blocks of columns."""
    draws = generator(o.seed, "first layer")
    for start in (0, *range(SIGNAL, o.p, 1024)):
        end = SIGNAL if start == 0 else min(start + 1024, o.p)
        yield uniform(o.width, end - start, fan_in=o.p, generator=draws)


class Network(torch.nn.Module):
    """f(x) = w₂ᵀ ReLU(W₁ x), without biases."""

    def __init__(self, w1: torch.Tensor, w2: torch.Tensor, support: int) -> None:
        super().__init__()
        self.first = FirstLayer(w1, support)  # W₁ (h, d)
        self.second = torch.nn.Parameter(w2)  # (h,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, d) → (B,)
        return self.head(self.first(x))

    def head(self, hidden: torch.Tensor) -> torch.Tensor:  # (B, h) → (B,)
        return torch.relu(hidden) @ self.second


def train(run: Run, o: Options) -> None:
    x, y, x_test, y_test = xor_clusters(o)
    coordinates = plain if o.full_dimension else span
    *parts, support = coordinates(x, x_test, lambda: first_layer(o), kept=SIGNAL)
    w2 = uniform(o.width, fan_in=o.width, generator=generator(o.seed, "second layer"))
    x, x_test, w1, y, y_test, w2 = (
        part.to(run.device, o.torch_dtype()) for part in (*parts, y, y_test, w2)
    )
    network = Network(w1, w2, support)
    parameters = list(network.parameters())
    optimiser = torch.optim.SGD(parameters, lr=o.lr, weight_decay=o.weight_decay, fused=True)
    regulariser, centroids = JacobianRegulariser(network), Centroids(network)  # exact: one output
    followed = int((y == 1).nonzero()[0]) if (y == 1).any() else 0
    # Share of a test point's length in the coordinates: in the span it is cut, no centroid is.
    shown = x_test.norm(dim=1) / (SIGNAL + (o.p - SIGNAL) * o.epsilon**2) ** 0.5

    def measure(step: int) -> dict[str, torch.Tensor]:
        outputs, of_training = network(x), centroids(x)
        draws, noise = generator(o.seed, "perturbations", step), torch.zeros_like(x_test)
        columns = noise[:, SIGNAL:]
        columns.copy_(torch.randn(columns.shape, generator=draws, dtype=torch.float64))
        # Linear, so that one product serves every size of noise.
        clean, move = network.first(x_test), network.first(noise)
        return {
            "loss": mse_loss(outputs, y),
            "train_accuracy": accuracy(outputs, y),
            "test_accuracy": accuracy(network.head(clean), y_test),
            **{f"accuracy_at_{s}": accuracy(network.head(clean + s * move), y_test) for s in NOISE},
            "centroid_norm_of_point": of_training.norms[followed],
            "inner_product_of_point": of_training.inner_products[followed],
            "alignment_of_point": of_training.alignments[followed],
            "alignment": (y * of_training.alignments).mean(),
            "test_alignment": (y_test * shown * centroids(x_test).alignments).mean(),
        }

    for step in training(run, measure, network=network, optimiser=optimiser):
        outputs, norm = regulariser.outputs_and_norm(x) if o.jr > 0 else (network(x), 0.0)
        loss = mse_loss(outputs, y) + o.jr * norm
        optimiser.zero_grad()
        loss.backward(inputs=parameters)  # and not by x, which the regulariser differentiates by
        optimiser.step()


@script
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    run = Run("xor_grokking", o)
    if not run.finished:  # else it would take seconds to make the data
        train(run, o)
    run.save_figure(robustness_figure(run.metrics(), run.begun_by))
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
