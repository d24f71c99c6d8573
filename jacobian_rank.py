"""Figure 2: do the Jacobians at the training points tend towards rank one?

A ReLU network learns MNIST with AdamW, from the mean-squared error to one-hot labels or from the
cross-entropy, with weight decay alone and with GrokAlign added to it. Claim: under both, PC1, the
share of the first singular value in the Jacobian's sum of squares, tends towards one.

    python jacobian_rank.py                                    # one of the four runs; 15 min
    python jacobian_rank.py --loss_fn CrossEntropy --jr 1e-3   # another; 27 min
    python jacobian_rank.py --steps 8000                       # the beginning; under two minutes
    python jacobian_rank.py --weight_decay 0                   # control: no regularisation at all
    python sweep.py configs/figure_2.yaml                      # the four, three seeds; 4 hours
    python report.py figure_2                                  # the four in one figure

The caption of Figure 2 states no sizes. These are Table 1's (1,024 points, width 196, depth 4,
batch 256, learning rate 1e-3, weight decay 0.01, λ_Jac, float64), but with weights as torch draws
them, not eight times as large (--init_scale 8). The four hours that Table 3 gives Figure 2 suggest
about 100,000 updates a run.

Verdict: results/jacobian_rank/README.md.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from lab.bench import Run, generator, option, parse, script, training
from lab.bench.plots import metric_panels
from lab.data import images
from lab.data.images import CLASSES, ImageOptions
from lab.fast.relu_norm import ReluRegulariser
from lab.measures.losses import accuracy
from lab.networks.mlp import relu_mlp
from utils import PC1, Centroids, JacobianRegulariser


@dataclass
class Options(ImageOptions):
    """Table 1's sizes, and updates by Table 3's hours."""

    loss_fn: str = option("MSE", "loss to minimise", choices=("MSE", "CrossEntropy"))
    jr: float = option(
        0.0,
        "weight of the Jacobian regulariser, λ_Jac; 0 is weight decay alone; the paper: 1e-4 for "
        "MSE, 1e-3 for CrossEntropy",
        least=0,
    )
    width: int = option(196, "hidden units of a layer", least=1)
    depth: int = option(4, "layers of weights", least=2)
    init_scale: float = option(1.0, "factor on all initial weights; Table 1: 8", above=0)
    batch_size: int | None = option(256, "points of one update; none for all of them", least=1)
    lr: float = option(1e-3, "learning rate of AdamW", above=0)
    weight_decay: float = option(0.01, "AdamW's decoupled weight decay, in every run", least=0)
    pc1_points: int = option(
        256, "first training points, over which PC1 and the norm are averaged", least=1
    )
    steps: int = option(100_000, "updates", least=0)
    dtype: str = option("float64", "precision of training", choices=("float32", "float64"))


PANELS = {
    "mean PC1, σ₁² / Σσ²": ("pc1",),
    "‖J‖ (mean, Frobenius)": ("jacobian_norm",),
    "accuracy": ("test_accuracy", "train_accuracy"),
}


def train(run: Run, o: Options, data: images.Images) -> None:
    x, y, x_test, y_test = data
    targets = one_hot(y, CLASSES).to(x) if o.loss_fn == "MSE" else y
    loss_fn = mse_loss if o.loss_fn == "MSE" else cross_entropy
    widths = [x.shape[1], *[o.width] * (o.depth - 1), CLASSES]
    network = relu_mlp(widths, generator(o.seed, "weights"), o.init_scale).to(x)
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, o.lr, weight_decay=o.weight_decay, fused=True)
    batch = run.batches(len(x), o.batch_size)
    regulariser = ReluRegulariser(network, generator=run.generator("projections"))
    explained, exact_norm = PC1(network), JacobianRegulariser(network, num_projections=None)
    centroids, followed = Centroids(network), x[: o.pc1_points]

    def measure(step: int) -> dict[str, torch.Tensor]:
        outputs, pc1 = network(x), explained(followed)
        return {
            "loss": loss_fn(outputs, targets),
            "train_accuracy": accuracy(outputs, y),
            "test_accuracy": accuracy(network(x_test), y_test),
            "pc1": pc1.mean(),
            "pc1_min": pc1.min(),  # 0 if a point has no Jacobian left
            "jacobian_norm": exact_norm(followed),
            "alignment": centroids(x).alignments.mean(),
        }

    for step in training(run, measure, network=network, optimiser=optimiser):
        if o.jr > 0:
            outputs, norm = regulariser.outputs_and_norm(batch(x))
        else:
            outputs, norm = network(batch(x)), 0.0
        loss = loss_fn(outputs, batch(targets)) + o.jr * norm
        optimiser.zero_grad()
        loss.backward(inputs=parameters)
        optimiser.step()


@script
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    data = images.load(o)
    run = Run("jacobian_rank", o)
    train(run, o, data)
    run.save_figure(metric_panels({"": run.metrics()}, PANELS, run.begun_by))
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
