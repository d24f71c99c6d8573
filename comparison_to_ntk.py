"""Figure 3: a changing centroid inner product marks the feature-learning regime.

A two-layer scalar ReLU network tells zeros from ones on MNIST by full-batch gradient descent on
the binary cross-entropy (Section 4.1). Claims: ⟨x, μ_x⟩ changes exactly as the neural tangent
kernel says (Theorem 9), and alignment stops rising once the norm of the centroid grows.

    python comparison_to_ntk.py                       # Figure 3, a minute
    python comparison_to_ntk.py --jr 1.0              # control: the norm kept low by GrokAlign
    python comparison_to_ntk.py --output_scale 0.25   # a network of Figure 10
    python sweep.py configs/figure_10.yaml            # all fifty of them, 25 min of one core
    python report.py figure_10                        # Figure 10, from finished runs

Two layers as in the paper; the official code's default is three. The rate of Theorem 9 includes
the output scale, in the official code too. So do our centroids, while the official code's leave it
out: the columns and results named "official" hold the norms of those.

Verdict: results/comparison_to_ntk/README.md.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from lab.bench import Run, double, generator, option, parse, script, training
from lab.data import images
from lab.data.images import ImageOptions
from lab.drawings.regime import regime_figure
from lab.measures.kernels import relu_kernel_row
from lab.networks.mlp import relu_mlp
from utils import Centroids, JacobianRegulariser


@dataclass
class Options(ImageOptions):
    """Section 4.1's set-up."""

    width: int = option(64, "hidden units of a layer", least=1)
    depth: int = option(2, "layers of weights", least=2)
    init_scale: float = option(1.0, "factor on all initial weights", above=0)
    output_scale: float = option(1.0, "factor on the output", above=0)
    jr: float = option(
        0.0, "weight of the Jacobian regulariser, λ_Jac, which Theorem 9 leaves out", least=0
    )
    lr: float = option(0.01, "learning rate of full-batch gradient descent", above=0)
    steps: int = option(4000, "full-batch updates", least=0)
    dtype: str = option("float64", "precision of training", choices=("float32", "float64"))


PANELS = {
    "mean neural tangent kernel": ("ntk_mean",),
    "inner product ⟨x, μ⟩": ("inner_product_of_point",),
    "centroid alignment": ("alignment_of_point",),
    "norm of the centroid": ("centroid_norm_of_point",),
}


class Network(torch.nn.Module):
    """f(x) = s · W₂ ReLU(W₁ x) with output scale s, without biases."""

    def __init__(self, o: Options, inputs: int) -> None:
        super().__init__()
        widths = [inputs, *[o.width] * (o.depth - 1), 1]
        self.layers = relu_mlp(widths, generator(o.seed, "weights"), o.init_scale)
        self.output_scale = o.output_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, D) → (B,)
        return self.output_scale * self.layers(x)[:, 0]

    def kernel(self, x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Neural tangent kernel of x (D,) against others (B, D): (B,)."""
        return self.output_scale**2 * relu_kernel_row(self.layers, x, others)


def train(run: Run, o: Options, data: images.Images) -> None:
    x, y, x_test, y_test = data
    y, y_test = y.to(x.dtype), y_test.to(x.dtype)
    network = Network(o, x.shape[1]).to(x)
    parameters = dict(network.named_parameters())
    optimiser = torch.optim.SGD(parameters.values(), lr=o.lr)
    loss_fn, regulariser = binary_cross_entropy_with_logits, JacobianRegulariser(network)
    followed = int((y == 1).nonzero()[0])  # labelled 1, so that its inner product rises
    point, centroids = x[followed : followed + 1], Centroids(network)

    @torch.no_grad()
    def rate() -> torch.Tensor:
        """Theorem 9: the change of ⟨x, μ_x⟩ in one update of learning rate η."""
        return o.lr * (network.kernel(point[0], x) * (y - torch.sigmoid(network(x)))).mean()

    @torch.enable_grad()
    def after_one_update() -> torch.Tensor:
        """⟨x, μ_x⟩ of the followed point after the next update, which is not made."""
        gradients = torch.autograd.grad(loss_fn(network(x), y), list(parameters.values()))
        moved = {k: p - o.lr * g for (k, p), g in zip(parameters.items(), gradients, strict=True)}
        after = partial(torch.func.functional_call, network, moved)
        return Centroids(after)(point).inner_products[0]

    def measure(step: int) -> dict[str, torch.Tensor]:
        outputs, outputs_test = network(x), network(x_test)
        kernel, at_point = network.kernel(point[0], x), centroids(point)
        return {
            "loss": loss_fn(outputs, y),
            "test_loss": loss_fn(outputs_test, y_test),
            "train_accuracy": double((outputs > 0) == (y > 0)).mean(),
            "test_accuracy": double((outputs_test > 0) == (y_test > 0)).mean(),
            "ntk_mean": (kernel.sum() - kernel[followed]) / (len(x) - 1),
            "inner_product_of_point": at_point.inner_products[0],
            "inner_product_rate": rate(),
            "inner_product_difference": after_one_update() - at_point.inner_products[0],
            "alignment_of_point": at_point.alignments[0],
            "centroid_norm_of_point": at_point.norms[0],
            "centroid_norm_official_of_point": at_point.norms[0] / o.output_scale,
        }

    reciprocal = centroids(x).norms.reciprocal().mean().item()
    begun = {"rate": rate().item(), "reciprocal_norm": reciprocal}  # of the initial network, for
    begun["reciprocal_norm_official"] = reciprocal * o.output_scale  # Figure 10
    for step in training(run, measure, network=network, optimiser=optimiser):
        outputs, norm = regulariser.outputs_and_norm(x) if o.jr > 0 else (network(x), 0.0)
        loss = loss_fn(outputs, y) + o.jr * norm
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    run.store(begun)


@script
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    data = images.load(o, classes=(0, 1))
    run = Run("comparison_to_ntk", o)
    train(run, o, data)
    run.save_figure(regime_figure(run.metrics(), PANELS, run.begun_by))
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
