"""Figure 2: do the Jacobians at the training points tend towards rank one?

A ReLU network learns MNIST with AdamW, from the mean-squared error to one-hot labels or from the
cross-entropy, with weight decay alone and with GrokAlign added to it. Claim: under both, PC1, the
share of the first singular value in the Jacobian's sum of squares, tends towards one.

    python jacobian_rank.py                                # all four runs, one figure; 2 hours
    python jacobian_rank.py --steps 6000                   # the same in under ten minutes
    python jacobian_rank.py --loss_fn MSE --jr 1e-4        # one of them
    python jacobian_rank.py --jr 0 --weight_decay 0        # control: no regularisation at all

The caption of Figure 2 states no sizes. These are Section 4.3's (1,024 points, width 196, depth 4,
batch 256, learning rate 1e-3, weight decay 0.01, λ_Jac as in Table 1), but with weights as torch
draws them, not eight times as large (--init_scale 8). The four hours that Table 3
gives Figure 2 suggest about 100,000 updates a run.

Result of --steps 8000, 3 seeds, 8 to 10 minutes for all four runs on one thread of a busy CPU.
Mean-squared error: from 0.21–0.22 to 0.90–0.91 with weight decay and to 0.92–0.93 with GrokAlign,
both still rising. Cross-entropy: to 0.36–0.48 with weight decay; with GrokAlign first down to
0.25–0.26 at step 787 to 909, then up to 0.49–0.54. Controls, 1 seed each: without any
regularisation PC1 ends at 0.89 (mean-squared error) and 0.40 (cross-entropy), with --weight_decay 1
at 0.96 and 0.58. In 20,000 updates weight decay brings the cross-entropy to 0.78, past a spike of
the loss.
"""

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from lab import images, plots
from lab.batches import minibatch
from lab.commands import command
from lab.compare import compare
from lab.images import ImageOptions, accuracy
from lab.models import relu_mlp
from lab.options import option, parse
from lab.runs import Run
from lab.seeds import generator
from lab.training import train
from utils import PC1, Centroids, JacobianRegulariser

JR = {"MSE": 1e-4, "CrossEntropy": 1e-3}  # λ_Jac of Table 1
CLASSES = 10


# Panels of --compare: what a column, or two, shows of each run.
COMPARED = {
    "mean PC1, σ₁² / Σσ²": ("pc1",),
    "mean Frobenius norm of the Jacobian": ("jacobian_norm",),
    "accuracy": ("test_accuracy", "train_accuracy"),
}


@dataclass
class Options(ImageOptions):
    """Section 4.3's sizes, and updates by Table 3's hours."""

    loss_fn: str | None = option(
        None, "loss to minimise; none for one after the other", choices=tuple(JR)
    )
    jr: float | None = option(
        None,
        "weight of the Jacobian regulariser, λ_Jac; 0 is weight decay alone; none for 0 and then "
        "the paper's 1e-4 (MSE) or 1e-3 (CrossEntropy)",
        least=0,
    )  # fmt: skip
    width: int = option(196, "hidden units of a layer", least=1)
    depth: int = option(4, "layers of weights", least=2)
    init_scale: float = option(1.0, "factor on all initial weights; Section 4.3: 8", above=0)
    batch_size: int | None = option(256, "points of one update; none for all of them", least=1)
    lr: float = option(1e-3, "learning rate of AdamW", above=0)
    weight_decay: float = option(0.01, "AdamW's decoupled weight decay, in every run", least=0)
    pc1_points: int = option(
        256, "first training points, over which PC1 and the norm are averaged", least=1
    )
    steps: int = option(100_000, "updates of each run", least=0)


def train_network(run: Run, data: images.Images, o: Options) -> None:
    x, y, x_test, y_test = data
    widths = [x.shape[1], *[o.width] * (o.depth - 1), CLASSES]
    network = relu_mlp(widths, generator(o.seed, "weights"), o.init_scale).to(x)
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, o.lr, weight_decay=o.weight_decay, fused=True)
    projections = generator(o.seed, "projections")
    regulariser = JacobianRegulariser(network, generator=projections)
    targets = one_hot(y, CLASSES).to(x) if o.loss_fn == "MSE" else y
    loss_of = mse_loss if o.loss_fn == "MSE" else cross_entropy

    def update(step: int) -> torch.Tensor:
        batch = minibatch(o.seed, step, len(x), o.batch_size)
        if o.jr > 0:
            outputs, jacobian_norm = regulariser.outputs_and_norm(x[batch])
            loss = loss_of(outputs, targets[batch]) + o.jr * jacobian_norm
        else:
            loss = loss_of(network(x[batch]), targets[batch])
        optimiser.zero_grad()
        loss.backward(inputs=parameters)
        optimiser.step()
        return loss

    explained, norm = PC1(network), JacobianRegulariser(network, num_projections=None)
    centroids, followed = Centroids(network), x[: o.pc1_points]

    def measure(step: int) -> dict[str, torch.Tensor]:
        outputs, pc1 = network(x), explained(followed)
        return {
            "loss": loss_of(outputs, targets),
            "train_accuracy": accuracy(outputs, y),
            "test_accuracy": accuracy(network(x_test), y_test),
            "pc1": pc1.mean(),
            "pc1_min": pc1.min(),  # 0 if a point has no Jacobian left
            "jacobian_norm": norm(followed),
            "alignment": centroids(x).alignments.mean(),
        }

    state = {"network": network, "optimiser": optimiser, "projections": projections}
    train(run, update, measure, state)


def one_run(data: images.Images, o: Options) -> Run:
    """Trains, or finds trained, and draws."""
    run = Run("jacobian_rank", o)
    if not run.finished:
        train_network(run, data, o)
    figure(run, [run])
    return run


def compared(data: images.Images, o: Options) -> Run:
    """Every loss and weight that the options leave open, and one figure of all, under --name."""
    whole = Run("jacobian_rank", o)
    runs = [
        one_run(data, replace(o, loss_fn=loss_fn, jr=jr, name=None))
        for loss_fn in ([o.loss_fn] if o.loss_fn else JR)
        for jr in ([0.0, JR[loss_fn]] if o.jr is None else [o.jr])
    ]
    figure(whole, runs)
    return whole


def figure(whole: Run, runs: list[Run]) -> None:
    drawing, axes = plots.panels(3, whole.command())
    for run in runs:
        o, m = run.options, run.metrics()
        terms = ["weight decay"] * (o.weight_decay > 0) + [f"GrokAlign {o.jr:g}"] * (o.jr > 0)
        line = {
            "color": plots.COLOURS[list(JR).index(o.loss_fn)],
            "ls": "-" if o.jr > 0 else "--",
            "label": f"{o.loss_fn}, {' + '.join(terms) or 'no regularisation'}",
        }
        axes[0].plot(m["step"], m["pc1"], **line)
        axes[1].plot(m["step"], m["jacobian_norm"], **line)
        axes[2].plot(m["step"], m["test_accuracy"], **line)
    for panel in axes:
        plots.step_axis(panel, runs[0].options.steps)
    axes[0].set(ylim=(0, 1), ylabel="mean PC1, σ₁² / Σσ²")
    axes[1].set(yscale="log", ylabel="mean Frobenius norm of the Jacobian")
    axes[2].set(ylim=(0, 1), ylabel="test accuracy")
    axes[2].legend(loc="lower right")
    whole.save_figure(drawing)


@command
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    if o.compare:
        compare("jacobian_rank", o, COMPARED)
        return
    data = images.load(o)
    run = compared(data, o) if o.loss_fn is None or o.jr is None else one_run(data, o)
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
