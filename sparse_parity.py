"""Delayed generalisation on sparse parity, a task that the paper does not have.

The label is the product of the first k of n signs, learnt by a ReLU network from minibatches (the
set-up of Merrill et al. 2023, arXiv 2303.11873). Claims under test: centroid alignment rises when
the network generalises; GrokAlign brings that forward.

    python sparse_parity.py                    # 26 s; it generalises
    python sparse_parity.py --jr 0.1           # with GrokAlign
    python sparse_parity.py --random_labels    # control: nothing to generalise to
    python sweep.py sparse_parity.py --jr 0 0.1 0.3 --seed 0:3

A scalar output's centroid points away from a point of label −1, so that alignment is that of the
margin y f(x). Only k inputs matter to the rule, and no vector confined to k of n signs is closer to
all of them than √(k/n), the dashed line. An episode is one point with a reward of 1 for the right
sign, so that the mean reward is the accuracy. Smoothness is where the Walsh energy of f lies on the
cube of all points, from lab/measures/smoothness.py: linear, on the parity, or on larger sets.

Verdict: results/sparse_parity/README.md.
"""

from dataclasses import dataclass
from functools import partial

import torch

from lab.bench import Run, Shared, UserError, generator, option, parse, plots, script, training
from lab.data.tasks import parity
from lab.measures.events import grokking_events
from lab.measures.losses import accuracy, hinge_loss
from lab.measures.smoothness import Cube
from lab.networks.mlp import uniform
from utils import CentroidMetrics, Centroids, JacobianRegulariser


@dataclass
class Options(Shared):
    """The set-up of Merrill et al., with fewer points."""

    samples: int = option(1000, "training points", least=1)
    test_samples: int = option(1000, "test points, none of which is a training point", least=1)
    batch_size: int | None = option(32, "training points of one update; none for all", least=1)
    lr: float = option(0.1, "learning rate of SGD", above=0)
    weight_decay: float = option(0.01, "L2 decay, added to the gradient", least=0)
    jr: float = option(0.0, "weight of the Jacobian regulariser, λ_Jac", least=0)
    random_labels: bool = option(False, "labels that are uniform draws, a control")
    n: int = option(40, "signs in a point", least=1)
    k: int = option(3, "signs that make the label, the first k", least=1)
    width: int = option(1000, "hidden units", least=1)
    steps: int = option(10_000, "updates of the parameters", least=0)
    num_logs: int = option(96, "measurements, log-spaced, first and last included", least=2)


PANELS = {
    "accuracy; share of the gradient": ("test_accuracy", "train_accuracy", "relevant_share"),
    "alignment of the margin (mean)": ("test_margin_alignment", "margin_alignment"),
    "Frobenius norm": ("jacobian_norm", "parameter_norm"),
    "share of the energy": ("parity_share", "energy_degree_1", "energy_degree_2", "energy_higher"),
    "mean degree": ("mean_degree",),
}


class Network(torch.nn.Module):
    """f(x) = w₂ᵀ ReLU(W₁ x + b), whose sign is to be the product of the first k entries of x.

    Without the bias the odd part of f would be linear, and the parity of three signs is odd.
    """

    def __init__(self, o: Options) -> None:
        super().__init__()
        drawn = partial(uniform, generator=generator(o.seed, "weights"))
        self.w1 = torch.nn.Parameter(drawn(o.width, o.n, fan_in=o.n))
        self.b = torch.nn.Parameter(drawn(o.width, fan_in=o.n))
        self.w2 = torch.nn.Parameter(drawn(o.width, fan_in=o.width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, n) → (B,)
        return torch.relu(x @ self.w1.T + self.b) @ self.w2


def train(run: Run, o: Options, data: tuple[torch.Tensor, torch.Tensor]) -> None:
    points, labels = (part.to(run.device, o.torch_dtype()) for part in data)
    x, x_test = points.split([o.samples, o.test_samples])
    y, y_test = labels.split([o.samples, o.test_samples])
    network = Network(o).to(x)
    parameters = list(network.parameters())
    optimiser = torch.optim.SGD(parameters, o.lr, weight_decay=o.weight_decay, fused=True)
    batch = run.batches(o.samples, o.batch_size)
    regulariser = JacobianRegulariser(network)  # exact, since the output is a scalar
    cube = Cube(o.n, generator(o.seed, "cube"), x)

    def of_margin(x: torch.Tensor, y: torch.Tensor) -> CentroidMetrics:
        return Centroids(lambda points: y * network(points))(x)

    def measure(step: int) -> dict[str, torch.Tensor]:
        outputs, trained = network(x), of_margin(x, y)
        others = of_margin(x_test[: o.samples], y_test[: o.samples])
        energies = trained.centroids.square()
        return {
            "loss": hinge_loss(outputs, y),
            "train_accuracy": accuracy(outputs, y),
            "test_accuracy": accuracy(network(x_test), y_test),
            "parameter_norm": torch.stack([p.norm() for p in parameters]).norm(),
            "jacobian_norm": regulariser(x),
            "alignment": (y * Centroids(network)(x).alignments).mean(),
            "margin_alignment": trained.alignments.mean(),
            "test_margin_alignment": others.alignments.mean(),
            "relevant_share": (energies[:, : o.k].sum(1) / energies.sum(1)).mean(),
            **cube.shares(network, o.k),
        }

    for step in training(run, measure, network=network, optimiser=optimiser):
        points = batch(x)
        outputs, norm = regulariser.outputs_and_norm(points) if o.jr > 0 else (network(points), 0.0)
        loss = hinge_loss(outputs, batch(y)) + o.jr * norm
        optimiser.zero_grad()
        loss.backward(inputs=parameters)
        optimiser.step()

    run.store(grokking_events(run.metrics()))


@script
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    if o.k > o.n:
        raise UserError(f"--k takes a whole number of at most --n {o.n}, got {o.k}")
    data = parity(o.samples + o.test_samples, o.n, o.k, o.seed, o.random_labels)
    run = Run("sparse_parity", o)
    train(run, o, data)
    drawing = plots.metric_panels({"": run.metrics()}, PANELS, run.begun_by, events=run.results())
    plots.level(drawing.axes[1], (o.k / o.n) ** 0.5, "ceiling, √(k / n) =")
    run.save_figure(drawing)
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
