"""Figures 1 and 11: a network's linear regions when it has memorised and when it generalises.

A ReLU network learns MNIST with GrokAlign. Claim: when it generalises, its linear regions have
flattened around the training points and migrated away from them.

    python linear_regions.py                         # Figure 1
    python linear_regions.py --without_jr            # the same network without GrokAlign beside it
    python linear_regions.py --run default jr=0.0 --samples 0 1 2 3 4 5 6 7 8 9 10 11   # Figure 11
    python linear_regions.py --samples 3 4 5         # trains anew, and follows other points

--run draws finished runs without training, also those of other scripts that keep their states at
memorisation and generalisation (lab/kept.py). Three training points span a plane, and each is
shown in a window of it, --half_width to each side in units of the input (points have norms of
about 28), the same at both moments. The regions there are exact (lab/regions.py). Without biases
they are cones with their tips at the origin, which the plane does not meet; scaling the weights of
a layer changes none of them, and the norms by that factor. The caption states no sizes: these are
Section 4.3's.

Result, seeds 0 and 1 with GrokAlign, seed 0 without; 4 and 17 minutes on one thread of a busy CPU.
Flattened: the median of ‖J‖₂ at 12 points falls 32- and 25-fold, between the points 38- and
30-fold; without GrokAlign 3-fold. Migrated: not with GrokAlign. The distance from a training point
to its region's nearest boundary, in the median over all 1,024, becomes 0.92 and 1.13 times as
large, from a test point 1.4 times; without GrokAlign, at 85 % as well, both become twice as large.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from matplotlib.colors import LogNorm
from torch.nn.functional import cross_entropy

from lab import images, plots
from lab.batches import minibatch
from lab.closed_form import ClosedForm
from lab.commands import command
from lab.compare import compare, names, run_folder
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
    jr: float = option(1e-3, "weight of the Jacobian regulariser, λ_Jac", least=0)
    without_jr: bool = option(False, "draw the same network with --jr 0 beside it")
    samples: tuple[int, ...] = option(
        (0, 1, 2), "training points, by their place in the set, three to a plane", least=0
    )
    half_width: float = option(2.0, "of the windows, in units of the input", above=0)
    most_regions: int = option(100_000, "regions of a window at most", least=1, names_run=False)
    run: tuple[str, ...] = option(
        (), "train nothing, and draw these finished runs of this script or of another that keeps "
        "the states at memorisation and generalisation",
    )  # fmt: skip
    lr: float = option(1e-3, "learning rate of AdamW", above=0)
    weight_decay: float = option(1e-2, "decoupled weight decay, in units of the rate", least=0)
    batch_size: int = option(256, "points of an update", least=1)
    stop_at: float = option(
        0.85, "test accuracy above which it has generalised, and the run ends", above=0, most=1
    )
    check_every: int = option(100, "epochs between measurements", least=1)
    steps: int = option(200_000, "updates at most", least=0)


def train_network(run: Run, data: images.Images, o: Options) -> None:
    x, y, x_test, y_test = data
    widths = [x.shape[1], *[o.width] * (o.depth - 1), CLASSES]
    network = relu_mlp(widths, generator(o.seed, "weights"), o.init_scale).to(x)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=o.lr, weight_decay=o.weight_decay, fused=True
    )
    regulariser = JacobianRegulariser(network)
    closed_form, kept = ClosedForm(regulariser), Kept(network)

    def update(step: int) -> torch.Tensor:
        rows = minibatch(o.seed, step, len(x), o.batch_size)
        regulariser.generator = generator(o.seed, "projections", step, device=x.device)
        loss, _ = closed_form.backward(x[rows], lambda f: cross_entropy(f, y[rows]), o.jr)
        optimiser.step()
        return loss

    def measure(step: int) -> dict[str, torch.Tensor]:
        outputs, rows = network(x), jacobian(network, x[:MEASURED])
        train_accuracy, test_accuracy = accuracy(outputs, y), accuracy(network(x_test), y_test)
        kept.first("memorised", step, train_accuracy == 1)
        kept.first("generalised", step, test_accuracy > o.stop_at)
        around = windows(network, x, o.samples, o.half_width, o.most_regions)
        each = [one.measured() for one in around]
        return {
            "loss": cross_entropy(outputs, y),
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
        stop=lambda row: row["test_accuracy"] > o.stop_at,
        measured={*log_steps(o.steps, o.num_logs), *checks},
    )  # fmt: skip


def figure(whole: Run, x: torch.Tensor, drawn: list[Picture]) -> None:
    samples = whole.options.samples
    columns = 1 + 2 * len(drawn)
    drawing, axes = plots.panels(columns, whole.command(), rows=len(samples))
    drawing.set_size_inches(1.9 * columns + 1, 2.0 * len(samples) + 0.8)
    norms = numpy.concatenate([w.regions.operator for p in drawn for w in p.around])
    norm = LogNorm(max(norms.min(), 1e-3 * norms.max()), norms.max())
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
            ends = {"vmin": -centroid.abs().max(), "vmax": centroid.abs().max()}
            right.imshow(centroid.reshape(image).numpy(), cmap="RdBu_r", **ends)
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
        above = Path(o.out_dir) / "linear_regions"
        folders = [run_folder("--run", given, above) for given in o.run]
        # Named after the folders' last parts, since a name has no slashes.
        short = tuple(name.replace("/", "_") for name in names(folders))
        run = beside(folders, replace(o, name=replace(o, run=short).run_name()))
    elif o.without_jr:
        each = [replace(o, without_jr=False, name=None, jr=jr) for jr in (o.jr, 0.0)]
        run = beside([trained(one).folder for one in each], o)
    else:
        run = trained(o)
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
