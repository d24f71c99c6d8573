"""Figures 1 and 11: a network's linear regions and centroids as it memorises and generalises.

A ReLU network learns MNIST with GrokAlign. Claim: when it has generalised, its linear regions have
flattened around the training points and migrated away from them, and the centroid of a point, the
sum of the Jacobian's rows there, looks like the point.

    python linear_regions.py --run inhibiting_generalisation/default  # Figure 1, a minute
    python linear_regions.py --run inhibiting_generalisation/default --samples $(seq 0 11)  # 11
    python linear_regions.py                   # trains the same network, and measures on the way
    python linear_regions.py --without_jr      # draws it without GrokAlign beside it

--run draws finished runs without training: Figure 7's, this script's and all that keep their
states at memorisation and generalisation (lab/kept.py), each at these two moments and at its end.
The training of this script is Figure 7's at level 0, for --steps updates. Smaller initial weights
show aligned centroids in a minute, but generalise as they memorise:

    python linear_regions.py --init_scale 2 --width 100 --jr 0.01 --steps 6000

Three training points span a plane, and each is shown in a window of it, --half_width to each side
in units of the input (points have norms of about 28), the same at all moments. The regions there
are exact (lab/regions.py). Without biases they are cones with their tips at the origin, which the
plane does not meet; scaling the weights of a layer changes none of them, and the norms by that
factor. In the centroids red is positive and blue negative.

Runs under the mean-squared error are being made; earlier ones, under the cross-entropy and stopped
at a test accuracy of 0.85, have a median cosine of 0.01 there (numbers in results/README.md).
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from matplotlib.colors import LogNorm
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from lab import images, plots
from lab.batches import minibatch
from lab.closed_form import ClosedForm
from lab.commands import command
from lab.compare import compare, run_folder
from lab.errors import UserError
from lab.images import ImageOptions, accuracy
from lab.kept import Kept
from lab.models import relu_mlp
from lab.options import option, parse
from lab.regions import radii
from lab.runs import Run, read_config
from lab.seeds import generator
from lab.training import log_steps, train
from lab.windows import Picture, draw, medians, pictures, planes, windows
from utils import JacobianRegulariser, jacobian

CLASSES = 10
GENERALISED = 0.85  # test accuracy, as in Table 1
MEASURED = 128  # training points at which the Jacobian is measured on the way
# Panels of --compare: what a column, or two, shows of each run.
COMPARED = {
    "accuracy": ("test_accuracy", "train_accuracy"),
    "regions in a window": ("regions",),
    "‖J‖₂ (window, point)": ("operator_norm", "point_operator_norm"),
    "radius (plane, input space)": ("radius", "input_radius"),
}


@dataclass
class Options(ImageOptions):
    """Section 4.3's sizes."""

    width: int = option(196, "hidden units of a layer", least=1)
    depth: int = option(4, "layers of weights", least=2)
    init_scale: float = option(8.0, "factor on all initial weights", above=0)
    loss_fn: str = option(
        "MSE", "the loss: the mean-squared error to one-hot labels, or the cross-entropy",
        choices=("MSE", "CrossEntropy"),
    )  # fmt: skip
    jr: float = option(1e-3, "weight of the Jacobian regulariser, λ_Jac", least=0)
    without_jr: bool = option(False, "draw the same network with --jr 0 beside it")
    samples: tuple[int, ...] = option(
        (0, 1, 2), "training points, by their place in the set, three to a plane", least=0
    )
    half_width: float = option(2.0, "of the windows, in units of the input", above=0)
    most_regions: int = option(100_000, "regions of a window at most", least=1, names_run=False)
    run: tuple[str, ...] = option(
        (), "train nothing, and draw these finished runs: folders, or in --out_dir names of this "
        "script's runs and SCRIPT/NAME of another's that keeps its states",
    )  # fmt: skip
    lr: float = option(1e-3, "learning rate of AdamW", above=0)
    weight_decay: float = option(1e-2, "decoupled weight decay, in units of the rate", least=0)
    batch_size: int = option(196, "points of an update", least=1)
    clip: float = option(
        1.0,
        "largest norm of the gradient, to which a larger one is scaled; 0 for no limit",
        least=0,
    )
    stop_at: float | None = option(
        None, "test accuracy above which the run ends; none trains to the end", above=0, most=1
    )
    check_every: int = option(500, "epochs between measurements", least=1)
    steps: int = option(64_000, "updates at most", least=0)
    num_logs: int = option(
        32, "measurements, log-spaced, besides those of --check_every; each takes a second", least=2
    )


def train_network(run: Run, data: images.Images, o: Options) -> None:
    x, y, x_test, y_test = data
    widths = [x.shape[1], *[o.width] * (o.depth - 1), CLASSES]
    network = relu_mlp(widths, generator(o.seed, "weights"), o.init_scale).to(x)
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=o.lr, weight_decay=o.weight_decay, fused=True)
    regulariser = JacobianRegulariser(network)
    closed_form, kept = ClosedForm(regulariser), Kept(network)
    loss_of, target = cross_entropy, y
    if o.loss_fn == "MSE":
        loss_of, target = mse_loss, one_hot(y, CLASSES).to(x.dtype)

    def update(step: int) -> torch.Tensor:
        rows = minibatch(o.seed, step, len(x), o.batch_size)
        regulariser.generator = generator(o.seed, "projections", step, device=x.device)
        loss, _ = closed_form.backward(x[rows], lambda f: loss_of(f, target[rows]), o.jr)
        if o.clip > 0:
            torch.nn.utils.clip_grad_norm_(parameters, o.clip)
        optimiser.step()
        return loss

    def measure(step: int) -> dict[str, torch.Tensor]:
        outputs, rows = network(x), jacobian(network, x[:MEASURED])
        train_accuracy, test_accuracy = accuracy(outputs, y), accuracy(network(x_test), y_test)
        kept.first("memorised", step, train_accuracy == 1)
        kept.first("generalised", step, test_accuracy > GENERALISED)
        around = windows(network, x, o.samples, o.half_width, o.most_regions)
        each = [one.measured() for one in around]
        return {
            "loss": loss_of(outputs, target),
            "train_accuracy": train_accuracy,
            "test_accuracy": test_accuracy,
            "jacobian_norm": torch.linalg.matrix_norm(rows).mean(),
            "alignment": torch.cosine_similarity(rows.sum(1), x[:MEASURED]).mean(),
            **{name: numpy.mean([m[name] for m in each]) for name in each[0]},
            **{f"radius_{i}": w.radius for i, w in zip(o.samples, around, strict=True)},
        }

    epoch = -(-len(x) // o.batch_size)  # updates
    checks = range(0, o.steps + 1, o.check_every * epoch)
    train(
        run, update, measure, {"network": network, "optimiser": optimiser, "kept": kept},
        stop=lambda row: o.stop_at is not None and row["test_accuracy"] > o.stop_at,
        measured={*log_steps(o.steps, o.num_logs), *checks},
    )  # fmt: skip


def figure(whole: Run, x: torch.Tensor, drawn: list[Picture]) -> None:
    samples = whole.options.samples
    columns = 1 + 2 * len(drawn)
    drawing, axes = plots.panels(columns, whole.command(), rows=len(samples))
    drawing.set_size_inches(1.9 * columns + 1, 2.0 * len(samples) + 0.8)
    norms = numpy.concatenate([w.regions.operator for p in drawn for w in p.around])
    highest = norms.max() or 1.0
    # A few dead regions would take the scale for themselves.
    norm = LogNorm(max(numpy.quantile(norms, 0.01), 1e-6 * highest), highest, clip=True)
    for axis in axes.flat:
        axis.grid(False)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for row, i in enumerate(samples):
        image = (int(x.shape[1] ** 0.5), -1)
        axes[row, 0].imshow(x[i].reshape(image).cpu().numpy(), cmap="gray")
        axes[row, 0].set_ylabel(f"training point {i}", fontsize=8)
        for picture, left, right in zip(drawn, axes[row, 1::2], axes[row, 2::2], strict=True):
            around = picture.around[row]
            cells = draw(left, around, norm)
            left.set_xlabel(
                f"{len(around.regions):,} regions, radius {around.radius:.2g}", fontsize=8
            )
            centroid = around.centroid()
            end = centroid.abs().max()
            right.imshow(centroid.reshape(image).numpy(), cmap="RdBu_r", vmin=-end, vmax=end)
            right.set_xlabel(f"centroid, cosine {around.alignment():.2f}", fontsize=8)
            if row == 0:
                title = f"{picture.moment}, step {picture.step:,}\n{picture.label}"
                left.set_title(title, fontsize=9)
    aspect = 15 * len(samples)
    drawing.colorbar(cells, ax=axes, label="‖J‖₂ on the region", shrink=0.8, aspect=aspect)
    whole.save_figure(drawing)


def pictures_of(folders: list[Path], x: torch.Tensor, o: Options) -> list[Picture]:
    return pictures(folders, x, o.samples, o.half_width, o.most_regions)


def trained(o: Options) -> Run:
    """Trains, or finds trained, and draws."""
    data = images.load(o)
    planes(data.x, o.samples)  # raises before a folder is made
    run = Run("linear_regions", o)
    if not run.finished:
        train_network(run, data, o)
    figure(run, data.x, pictures_of([run.folder], data.x, o))
    return run


def beside(folders: list[Path], o: Options) -> Run:
    """Draws finished runs; a row of metrics.csv is a training point at a moment of one of them."""
    configs = [read_config(folder / "config.yaml") for folder in folders]
    (dataset, count), *others = {(c.get("dataset"), c.get("points")) for c in configs}
    if others or dataset is None:
        raise UserError("--run takes runs that were trained on the same images")
    x, _, x_test, _ = images.load(replace(o, dataset=dataset, points=count))
    drawn = pictures_of(folders, x, o)
    whole = Run("linear_regions", o)
    if not whole.finished:
        for picture in drawn:
            for i, around in zip(o.samples, picture.around, strict=True):
                about = {"run": picture.run, "sample": i}
                whole.record(picture.step, {**about, **around.measured()})
        whole.save(0, 0.0, {}, finished=True)
        whole.store(
            {
                f"{p.name}, {p.moment}: medians": {
                    "at the points": medians(p.around),
                    "between them": medians(p.between),
                    "input_radius, all training points": radii(p.network, x).median().item(),
                    "input_radius, all test points": radii(p.network, x_test).median().item(),
                }
                for p in drawn
            }
        )
    figure(whole, x, drawn)
    return whole


@command
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    if o.compare:
        compare("linear_regions", o, COMPARED)
        return
    if o.without_jr and (o.run or o.jr == 0):
        raise UserError("--without_jr takes a --jr above 0 to draw it beside, and no --run")
    if o.run:
        above = Path(o.out_dir)
        folders = [
            run_folder("--run", given, above if "/" in given else above / "linear_regions")
            for given in o.run
        ]
        # Named after the folders' last parts, since a name has no slashes.
        short = tuple(
            "_".join(folder.parts[-1 if folder.parent.name == "linear_regions" else -2 :])
            for folder in folders
        )
        run = beside(folders, replace(o, name=replace(o, run=short).run_name()))
    elif o.without_jr:
        each = [replace(o, without_jr=False, name=None, jr=jr) for jr in (o.jr, 0.0)]
        run = beside([trained(one).folder for one in each], o)
    else:
        run = trained(o)
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
