"""Figure 7: a Jacobian held up inhibits delayed generalisation on MNIST, minimising it does not.

Section 4.3's set-up after Liu et al. 2023 (Omnigrok): a ReLU network of four layers without biases,
all weights begun at eight times torch's default, fits 1,024 digits by the mean-squared error. The
loss gains 0.001 · |level − mean ‖J‖_F|. Claim: with level 0 the network groks; with level 5 the
norms of the centroids stay high and it does not.

    python inhibiting_generalisation.py                # "Minimised Jacobian"
    python inhibiting_generalisation.py --jr 5.0       # "Constrained Jacobian"
    python inhibiting_generalisation.py --jr none      # without the term
    python inhibiting_generalisation.py --compare default jr=5.0 jr=None

The level is --jr and the weight --jr_weight (the official code has the term off at level 0). The
mean norm of a batch is estimated with one random direction a point, which reads low, by up to 18 %
near rank one; the norm that is measured is exact. Measurements are means over all training points.

Result, 1 seed, 32,000 epochs, 25 minutes on one busy thread: reproduced. Until step 18,000 the two
runs are one, since the norm falls from 526 and has not come to 5. Minimised, the test accuracy
passes 0.85 at step 32,838 and ends at 0.87, the centroids' norm at 0.04, their alignment at 0.83.
Held at 5 (it moves between 2.3 and 6.0) the test accuracy ends at 0.57, having been 0.60 at most,
and the alignment stays below 0.04.
"""

from dataclasses import dataclass

import torch

from lab import images
from lab.batches import minibatch
from lab.closed_form import ClosedForm
from lab.commands import command
from lab.compare import compare
from lab.images import ImageOptions, accuracy
from lab.kept import Kept
from lab.models import relu_mlp
from lab.options import option, parse
from lab.plots import metric_panels
from lab.runs import Run
from lab.seeds import generator
from lab.training import train
from utils import Centroids, JacobianRegulariser, jacobian

CLASSES = 10
GENERALISED = 0.85  # test accuracy, as in Table 1
PROJECTIONS = (*map(str, range(1, CLASSES + 1)), "exact")
PANELS = {
    "accuracy": ("train_accuracy", "test_accuracy"),
    "norm of the centroids (mean)": ("centroid_norm",),
    "centroid alignment (mean)": ("alignment",),
    "‖J‖ (mean, Frobenius)": ("jacobian_norm",),
}


@dataclass
class Options(ImageOptions):
    """Section 4.3's set-up."""

    width: int = option(196, "hidden units of a layer", least=1)
    depth: int = option(4, "layers of weights", least=2)
    init_scale: float = option(8.0, "factor on all initial weights", above=0)
    jr: float | None = option(
        0.0,
        "level of the mean norm of the Jacobian: 0 minimises it, 5 holds it there (the paper's "
        "constrained run), none trains without the term",
        least=0,
    )
    jr_weight: float = option(1e-3, "weight of the term", least=0)
    num_projections: str = option(
        "1", "random directions a point that estimate the norm, or exact", choices=PROJECTIONS
    )
    lr: float = option(1e-3, "learning rate of AdamW", above=0)
    weight_decay: float = option(1e-2, "decoupled weight decay, in units of the rate", least=0)
    batch_size: int = option(196, "points of an update", least=1)
    clip: float = option(
        1.0,
        "largest norm of the gradient, to which a larger one is scaled; 0 for no limit",
        least=0,
    )
    steps: int = option(192_000, "updates; 32,000 epochs of the default six", least=0)


def train_network(run: Run, data: images.Images, o: Options) -> None:
    x, y, x_test, y_test = data
    widths = [x.shape[1], *[o.width] * (o.depth - 1), CLASSES]
    network = relu_mlp(widths, generator(o.seed, "weights"), o.init_scale).to(x)
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=o.lr, weight_decay=o.weight_decay, fused=True)
    regulariser = JacobianRegulariser(
        network, None if o.num_projections == "exact" else int(o.num_projections)
    )
    closed_form = ClosedForm(regulariser)
    centroids, kept = Centroids(network), Kept(network)
    one_hot = torch.nn.functional.one_hot(y, CLASSES).to(x.dtype)

    def slope(norm: torch.Tensor) -> torch.Tensor:
        """Derivative of jr_weight · |level − norm|."""
        return o.jr_weight * (norm - o.jr).sign()

    def update(step: int) -> torch.Tensor:
        rows = minibatch(o.seed, step, len(x), o.batch_size)
        regulariser.generator = generator(o.seed, "projections", step, device=x.device)
        loss, _ = closed_form.backward(
            x[rows],
            lambda outputs: torch.nn.functional.mse_loss(outputs, one_hot[rows]),
            0.0 if o.jr is None else slope,
        )
        if o.clip > 0:
            torch.nn.utils.clip_grad_norm_(parameters, o.clip)
        optimiser.step()
        return loss

    def measure(step: int) -> dict[str, torch.Tensor]:
        outputs, at_points = network(x), centroids(x)
        on_train, on_test = accuracy(outputs, y), accuracy(network(x_test), y_test)
        kept.first("memorised", step, on_train == 1)
        kept.first("generalised", step, on_test > GENERALISED)
        return {
            "loss": torch.nn.functional.mse_loss(outputs, one_hot),
            "train_accuracy": on_train,
            "test_accuracy": on_test,
            "centroid_norm": at_points.norms.mean(),
            "alignment": at_points.alignments.mean(),
            "jacobian_norm": torch.linalg.matrix_norm(jacobian(network, x)).mean(),
        }

    state = {"network": network, "optimiser": optimiser, "kept": kept}  # for linear_regions.py
    train(run, update, measure, state)


@command
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    if o.compare:
        compare("inhibiting_generalisation", o, PANELS)
        return
    data = images.load(o)
    run = Run("inhibiting_generalisation", o)
    if not run.finished:
        train_network(run, data, o)
    run.save_figure(metric_panels({"": run.metrics()}, PANELS, run.command()))
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
