"""Figure 1 along a training: linear regions around points as a network learns with GrokAlign.

A ReLU network learns 1,024 digits from weights begun at eight times torch's default. Claim: on its
way to generalising, its linear regions flatten around the training points and migrate away from
them, and the centroid of a point, the sum of the Jacobian's rows there, comes to look like it.

    python linear_regions.py                            # 64,000 updates, 20 min
    python linear_regions.py --jr 0                     # without GrokAlign
    python report.py figure_1 linear_regions/default    # its regions and centroids drawn, 2 min
    python report.py figure_1                           # those of Figure 7's runs; figure_11: more

The training is Figure 7's at level 0. Smaller initial weights show aligned centroids in a minute,
but generalise as they memorise:

    python linear_regions.py --init_scale 2 --width 100 --jr 0.01 --steps 6000

Three training points span a plane, and each is followed in a window of it, --half_width to each
side in units of the input (points have norms of about 28), the same at all times; means over the
points. The regions there are exact (lab/regions). Without biases they are cones with their tips at
the origin, which the plane does not meet; scaling the weights of a layer changes none of them, and
the norms by that factor.

Verdict: results/linear_regions/README.md.
"""

from dataclasses import dataclass

import numpy
import torch
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from lab.bench import Run, Snapshots, UserError, generator, option, parse, script, training
from lab.bench.levels import GENERALISED
from lab.bench.loop import above, log_steps
from lab.bench.plots import metric_panels
from lab.data import images
from lab.data.images import CLASSES, ImageOptions
from lab.fast.relu_norm import ReluRegulariser
from lab.measures.losses import accuracy
from lab.networks.mlp import relu_mlp
from lab.regions import SliceError
from lab.regions.windows import LIMIT, planes, windows
from utils import jacobian


@dataclass
class Options(ImageOptions):
    """Figure 7's sizes."""

    width: int = option(196, "hidden units of a layer", least=1)
    depth: int = option(4, "layers of weights", least=2)
    init_scale: float = option(8.0, "factor on all initial weights", above=0)
    loss_fn: str = option("MSE", "the loss", choices=("MSE", "CrossEntropy"))
    jr: float = option(1e-3, "weight of the Jacobian regulariser, λ_Jac", least=0)
    samples: tuple[int, ...] = option(
        (0, 1, 2), "training points, by their place in the set, three to a plane", least=0
    )
    half_width: float = option(2.0, "of the windows, in units of the input", above=0)
    most_regions: int = option(LIMIT, "regions of a window at most", least=1, names_run=False)
    lr: float = option(1e-3, "learning rate of AdamW", above=0)
    weight_decay: float = option(1e-2, "decoupled weight decay, in units of the rate", least=0)
    batch_size: int = option(196, "points of an update", least=1)
    clip: float = option(1.0, "largest norm of the gradient; 0 for no limit", least=0)
    stop_at: float | None = option(None, "test accuracy above which the run ends", above=0, most=1)
    check_every: int = option(500, "epochs between measurements", least=1)
    steps: int = option(64_000, "updates at most", least=0)
    num_logs: int = option(32, "log-spaced measurements besides; each takes a second", least=2)


MEASURED = 128  # training points at which the Jacobian is measured on the way
PANELS = {
    "accuracy": ("test_accuracy", "train_accuracy"),
    "regions in a window": ("regions",),
    "‖J‖₂ (window, point)": ("operator_norm", "point_operator_norm"),
    "radius (plane, input space)": ("radius", "input_radius"),
    "alignment (all points, these)": ("alignment", "point_alignment"),
}


def train(run: Run, o: Options, data: images.Images) -> None:
    x, y, x_test, y_test = data
    targets = one_hot(y, CLASSES).to(x.dtype) if o.loss_fn == "MSE" else y
    loss_fn = mse_loss if o.loss_fn == "MSE" else cross_entropy
    widths = [x.shape[1], *[o.width] * (o.depth - 1), CLASSES]
    network = relu_mlp(widths, generator(o.seed, "weights"), o.init_scale).to(x)
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, o.lr, weight_decay=o.weight_decay, fused=True)
    batch = run.batches(len(x), o.batch_size)
    regulariser = ReluRegulariser(network, generator=run.generator("projections"))
    snapshots = Snapshots()  # which `report.py figure_1` draws

    def measure(step: int) -> dict[str, torch.Tensor]:
        outputs, rows = network(x), jacobian(network, x[:MEASURED])
        on_train, on_test = accuracy(outputs, y), accuracy(network(x_test), y_test)
        snapshots.first("memorised", step, on_train == 1, network)
        snapshots.first("generalised", step, on_test > GENERALISED, network)
        looked_at = windows(network, x, o.samples, o.half_width, o.most_regions)
        each = [window.measured() for window in looked_at]
        return {
            "loss": loss_fn(outputs, targets),
            "train_accuracy": on_train,
            "test_accuracy": on_test,
            "jacobian_norm": torch.linalg.matrix_norm(rows).mean(),
            "alignment": torch.cosine_similarity(rows.sum(1), x[:MEASURED]).mean(),
            **{name: numpy.mean([m[name] for m in each]) for name in each[0]},
            **{f"radius_{i}": w.radius for i, w in zip(o.samples, looked_at, strict=True)},
        }

    state = {"network": network, "optimiser": optimiser, "snapshots": snapshots}
    checks = range(0, o.steps + 1, o.check_every * batch.epoch_length)
    measured, stop = {*log_steps(o.steps, o.num_logs), *checks}, above("test_accuracy", o.stop_at)
    for step in training(run, measure, stop=stop, measured=measured, **state):
        points = batch(x)
        outputs, norm = regulariser.outputs_and_norm(points) if o.jr > 0 else (network(points), 0.0)
        loss = loss_fn(outputs, batch(targets)) + o.jr * norm
        optimiser.zero_grad()
        loss.backward(inputs=parameters)
        if o.clip > 0:
            torch.nn.utils.clip_grad_norm_(parameters, o.clip)
        optimiser.step()


@script
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    data = images.load(o)
    try:
        planes(data.x, o.samples)  # raises before a folder is made
    except SliceError as error:
        raise UserError(f"--{error}") from None
    run = Run("linear_regions", o)
    try:
        train(run, o, data)
    except SliceError as error:
        raise UserError(f"{error}: --half_width, --most_regions") from None
    run.save_figure(metric_panels({"": run.metrics()}, PANELS, run.begun_by))
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
