"""Norm minimisation on the zero-loss manifold groks modular addition (Musat 2025).

A two-layer network that fits its training pairs from the first moment on, and only minimises its
squared norm, by the flow of arXiv 2511.01938 (lab/flow.py). Claims: it generalises late, as
ordinary training does, and comes to represent numbers by Fourier features, on circles; the sibling
project adds that their norms equalise and their real and imaginary parts become orthogonal.

    python norm_minimisation.py                    # the flow
    python norm_minimisation.py --random_labels    # control: nothing to generalise
    python norm_minimisation.py --activation gelu  # or square, or --tied embeddings
    python norm_minimisation.py --sgd              # AdamW from the same start beside it
    python norm_minimisation.py --config configs/norm_minimisation_gd.yaml   # gradient descent

Result, p = 23, 264 of 529 pairs, float64, 3 seeds of each kind of flow: the train error stays below
1e-13 and the test accuracy passes 0.95 at time 3.6 to 4.0 (ReLU), 2.0 (GELU), 2.4 to 2.6 (square),
6.4 to 7.3 (tied); random labels stay at chance. The energy in each neuron's strongest frequency
rises from 0.27 (chance) to 0.81, with random labels to 0.29. That the norms equalise and the parts
become orthogonal says little: a wide random embedding has both already, and with square units
the norms' spread doubles. Of the optimisers, 3 seeds each: gradient descent with little decay
does as the flow does, later (0.95 at time 7.3 to 8.0); AdamW at 15.4 to 18.7, while its squared
norm grows. About 10 s of CPU time, with AdamW 90 s, with gradient descent 2 min, on one thread.
"""

from dataclasses import dataclass

import torch

from lab import fourier, plots
from lab.commands import command
from lab.compare import compare
from lab.flow import ACTIVATIONS, RIDGE, ZeroLossFlow
from lab.modular import ModularTask, modular_addition
from lab.options import Shared, option, parse
from lab.runs import Run
from lab.seeds import generator
from lab.training import train

# Panels of --compare: what a column, or two, shows of each run.
COMPARED = {
    "accuracy": ("test_accuracy", "train_accuracy"),
    "squared norm of the weights": ("squared_norm",),
    "frequency dominance": ("frequency_dominance",),
}


@dataclass
class Options(Shared):
    """The set-up of the flow, and of AdamW beside it."""

    p: int = option(23, "the modulus, an odd prime", least=3)
    train_fraction: float = option(0.5, "share of the pairs that train", above=0)
    random_labels: bool = option(False, "control: labels drawn at random")
    width: int = option(512, "hidden units, at least as many as training pairs", least=1)
    activation: str = option("relu", "of the hidden units", choices=tuple(ACTIVATIONS))
    tied: bool = option(False, "one embedding for both operands; takes the pairs a ≤ b only")
    init_std: float = option(0.15, "standard deviation of the initial first layer", above=0)
    ridge: float = option(
        RIDGE, "added to H Hᵀ, in units of the mean of its diagonal; 0 for none", least=0
    )
    sgd: bool = option(False, "train W₁ and W₂ too, from the same start and for the same time")
    optimiser: str = option(
        "adamw", "of --sgd; gd: gradient descent with L2 decay", choices=("adamw", "gd")
    )
    lr: float = option(1e-3, "learning rate of --sgd", above=0)
    weight_decay: float = option(
        1.0, "weight decay of --sgd; lr × this is its unit of time", above=0
    )
    steps: int = option(1000, "Euler steps of the flow, of 0.05 units of time at most", least=0)
    dtype: str = option("float64", "precision; float32 cannot invert H Hᵀ", choices=("float64",))


def task(o: Options) -> ModularTask:
    everything = modular_addition(o.p, o.train_fraction, o.seed, o.random_labels)
    if not o.tied:
        return everything
    # To a tied network (a, b) and (b, a) are one input: two rows of H would be the same, and test
    # pairs whose mirror image trains would be known.
    below = everything.pairs[:, 0] <= everything.pairs[:, 1]
    train, test = (part[below[part]] for part in (everything.train, everything.test))
    return everything._replace(train=train, test=test)


def one_hot(o: Options, pairs: torch.Tensor) -> torch.Tensor:
    """(B, 2p), or (B, p) counts for tied embeddings."""
    if not o.tied:
        pairs = pairs + torch.tensor([0, o.p])
    return torch.nn.functional.one_hot(pairs, o.p if o.tied else 2 * o.p).sum(1).double()


def initial_weights(o: Options) -> torch.Tensor:  # (2p or p, h)
    w1 = torch.empty(o.p if o.tied else 2 * o.p, o.width, dtype=torch.float64)
    return w1.normal_(std=o.init_std, generator=generator(o.seed, "first layer"))


def embedding(o: Options, w1: torch.Tensor) -> torch.Tensor:
    """(p, h), or (p, 2h), the embeddings of both operands side by side."""
    return w1 if o.tied else torch.cat([w1[: o.p], w1[o.p :]], dim=1)


class Network(torch.nn.Module):
    """The same network, σ(X W₁) W₂, for ordinary training."""

    def __init__(self, w1: torch.Tensor, w2: torch.Tensor) -> None:
        super().__init__()
        self.w1 = torch.nn.Parameter(w1.clone())
        self.w2 = torch.nn.Parameter(w2.clone())
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))  # updates


def start(o: Options, device: torch.device):
    """Inputs and centred targets of all pairs, the task, and the flow at its start."""
    t = task(o)
    x = one_hot(o, t.pairs).to(device)
    y = (torch.nn.functional.one_hot(t.labels, o.p).double() - 1 / o.p).to(device)
    t = ModularTask(o.p, *(part.to(device) for part in t[1:]))
    w1 = initial_weights(o).to(device)
    return x, y, t, ZeroLossFlow(x[t.train], y[t.train], w1, o.activation, o.ridge)


def train_network(run: Run, o: Options, x, y, t: ModularTask, flow: ZeroLossFlow) -> None:
    network = Network(flow.w1, flow.here().w2)
    kind = {"adamw": torch.optim.AdamW, "gd": torch.optim.SGD}[o.optimiser]
    optimiser = kind(network.parameters(), lr=o.lr, weight_decay=o.weight_decay)
    x_train, y_train = x[t.train], y[t.train]

    def update(step: int) -> torch.Tensor:
        squared_norm = flow.advance()
        # The weights decay by the factor 1 − lr · weight_decay a step: so long is the step.
        while o.sgd and network.steps * o.lr * o.weight_decay < flow.time:
            hidden, _ = flow.activation(x_train @ network.w1)
            loss = 0.5 * (hidden @ network.w2 - y_train).square().sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            network.steps += 1
        return squared_norm

    def describe(w1: torch.Tensor, w2: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = flow.activation(x @ w1)[0] @ w2
        right = (outputs.argmax(1) == t.labels).double()
        features = embedding(o, w1)
        return {
            "train_error": (outputs[t.train] - y_train).square().mean(),
            "train_accuracy": right[t.train].mean(),
            "test_accuracy": right[t.test].mean(),
            "squared_norm": w1.square().sum() + w2.square().sum(),
            "squared_norm_1": w1.square().sum(),
            "squared_norm_2": w2.square().sum(),
            "frequency_dominance": fourier.frequency_dominance(features),
            "norm_spread": fourier.norm_spread(features),
            "orthogonality": fourier.orthogonality(features),
            "ellipticity": fourier.ellipticity(features),
        }

    @torch.no_grad()
    def measure(step: int) -> dict[str, torch.Tensor | float]:
        row = {"time": flow.time, **describe(flow.w1, flow.here().w2)}
        if o.sgd:
            beside = describe(network.w1, network.w2)
            row |= {"trained_steps": network.steps}
            row |= {f"trained_{key}": value for key, value in beside.items()}
        return row

    state = {"flow": flow}
    if o.sgd:
        state |= {"network": network, "optimiser": optimiser}
    train(run, update, measure, state)


def figure(run: Run, o: Options) -> None:
    m = run.metrics()
    drawing, axes = plots.panels(3, run.command(), rows=2)
    (accuracies, norms, orders), (before, after, spectrum) = axes
    blue, orange, green, pink = plots.COLOURS[:4]

    lines = [
        (accuracies, "train_accuracy", "train, flow", blue, "--"),
        (accuracies, "test_accuracy", "test, flow", blue, "-"),
        (norms, "squared_norm", "flow, ‖W₁‖² + ‖W₂‖²", blue, "-"),
        (norms, "squared_norm_1", "flow, ‖W₁‖²", blue, "--"),
        (norms, "squared_norm_2", "flow, ‖W₂‖²", blue, ":"),
        (orders, "frequency_dominance", "frequency dominance", blue, "-"),
        (orders, "orthogonality", "orthogonality", pink, "-"),
        (orders, "ellipticity", "ellipticity", green, "-"),
        (orders, "norm_spread", "norm spread", orange, "-"),
    ]
    if o.sgd:
        lines += [
            (accuracies, "trained_train_accuracy", f"train, {o.optimiser}", orange, "--"),
            (accuracies, "trained_test_accuracy", f"test, {o.optimiser}", orange, "-"),
            (norms, "trained_squared_norm", o.optimiser, orange, "-"),
        ]
    plots.curves(m, lines, against="time")
    accuracies.set_title(f"the flow's train error ≤ {m['train_error'].max():.0e}", fontsize=10)
    accuracies.set_ylabel("accuracy")
    norms.set_yscale("log")
    norms.set_ylabel("squared norm")
    orders.set_ylabel("measure of the embedding")
    orders.set_ylim(-0.03, 1.03)
    for panel in (accuracies, norms, orders):
        panel.set_xscale("symlog", linthresh=0.1, linscale=0.5)
        panel.set_xlim(0, max(m["time"][-1], 0.1))
        panel.set_xlabel("time, in units of 1 / (learning rate × weight decay)")
        panel.legend(loc="best")

    first = embedding(o, initial_weights(o))
    last = embedding(o, run.saved_state("flow")["w1"])
    k = int(fourier.frequency_norms(last).argmax()) + 1
    # The same neurons in both panels, chosen at the end: in all neurons together every frequency
    # of a wide random embedding already draws a circle.
    tuned = fourier.strongest_frequency(last) == k
    for panel, features, when in ((before, first, "at the start"), (after, last, "at the end")):
        points = fourier.plane(features[:, tuned], k)
        turn = [a * pow(k, -1, o.p) % o.p for a in range(o.p + 1)]  # neighbours on the circle
        panel.plot(*points[turn].T, color="#999999", lw=1)
        panel.scatter(*points.T, c=range(o.p), cmap=plots.SEQUENTIAL, s=40, zorder=2)
        for a, point in enumerate(points.tolist()):
            panel.annotate(str(a), point, xytext=(4, 4), textcoords="offset points", fontsize=8)
        panel.set_aspect("equal", "datalim")
        panel.set_title(f"frequency {k}, {int(tuned.sum())} neurons, {when}", fontsize=10)
        panel.set_xlabel("long axis")
        panel.set_ylabel("short axis")
    frequencies = range(1, (o.p - 1) // 2 + 1)
    spectrum.plot(frequencies, fourier.frequency_norms(first), "o--", color=green, label="start")
    spectrum.plot(frequencies, fourier.frequency_norms(last), "o-", color=blue, label="end")
    spectrum.set_ylim(0)
    spectrum.set_xlabel("frequency")
    spectrum.set_ylabel("norm of the Fourier feature")
    spectrum.legend()
    run.save_figure(drawing)


@command
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    if o.compare:
        compare("norm_minimisation", o, COMPARED)
        return
    begin = start(o, o.torch_device())  # before the run's folder, since it checks the options
    run = Run("norm_minimisation", o)
    if not run.finished:
        train_network(run, o, *begin)
    figure(run, o)
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
