"""Norm minimisation on the zero-loss manifold groks modular addition (Musat 2025).

A two-layer network that fits its training pairs from the first moment on, and only minimises its
squared norm, by the flow of arXiv 2511.01938 (lab/methods/flow.py). Claims: it generalises late, as
ordinary training does, and comes to represent numbers by Fourier features, on circles; the project
grokking-mechanism-test adds that their norms equalise and their parts become orthogonal.

    python norm_minimisation.py                    # the flow, 10 s
    python norm_minimisation.py --random_labels    # control: nothing to generalise
    python norm_minimisation.py --activation gelu  # or square, or --tied embeddings
    python norm_minimisation.py --sgd              # AdamW from the same start as well, 90 s
    python norm_minimisation.py --config configs/norm_minimisation_gd.yaml    # or gradient descent

Verdict: results/norm_minimisation/README.md.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import one_hot

from lab.bench import Run, Shared, UserError, generator, option, parse, script, training
from lab.data.modular import ModularTask, modular_addition
from lab.drawings.norms import norm_figure
from lab.measures import fourier
from lab.methods.flow import ACTIVATIONS, RIDGE, ZeroLossFlow


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
    ridge: float = option(RIDGE, "added to H Hᵀ, times the mean of its diagonal; 0: none", least=0)
    sgd: bool = option(False, "train by --optimiser too, from the same start and for the same time")
    optimiser: str = option(
        "adamw", "of --sgd; gd: gradient descent with L2", choices=("adamw", "gd"), needs="sgd"
    )
    lr: float = option(1e-3, "learning rate of --sgd", above=0, needs="sgd")
    weight_decay: float = option(1.0, "weight decay of --sgd", above=0, needs="sgd")
    steps: int = option(1000, "Euler steps of the flow, of 0.05 units of time at most", least=0)
    dtype: str = option("float64", "precision; float32 cannot invert H Hᵀ", choices=("float64",))


PANELS = {
    "accuracy": ("test_accuracy", "train_accuracy"),
    "squared norm of the weights": ("squared_norm",),
    "frequency dominance": ("frequency_dominance",),
}


def encoded(o: Options, pairs: torch.Tensor) -> torch.Tensor:
    """(B, 2p), or (B, p) counts for tied embeddings."""
    if not o.tied:
        pairs = pairs + torch.tensor([0, o.p], device=pairs.device)
    return one_hot(pairs, o.p if o.tied else 2 * o.p).sum(1).double()


def initial_weights(o: Options) -> torch.Tensor:  # (2p or p, h)
    w1 = torch.empty(o.p if o.tied else 2 * o.p, o.width, dtype=torch.float64)
    return w1.normal_(std=o.init_std, generator=generator(o.seed, "first layer"))


def embedding(o: Options, w1: torch.Tensor) -> torch.Tensor:
    """(p, h), or (p, 2h), the embeddings of both operands side by side."""
    return w1 if o.tied else torch.cat([w1[: o.p], w1[o.p :]], dim=1)


class Network(torch.nn.Module):
    """The same network, σ(X W₁) W₂, for ordinary training."""

    def __init__(self, *weights: torch.Tensor) -> None:
        super().__init__()
        self.w1, self.w2 = (torch.nn.Parameter(w.clone()) for w in weights)
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))  # updates


def start(o: Options, device: torch.device):
    """Inputs and centred targets of all pairs, the task, and the flow at its start."""
    t = modular_addition(o.p, o.train_fraction, o.seed, o.random_labels).to(device)
    t = t.one_order() if o.tied else t  # else two rows of H would be the same
    x, y = encoded(o, t.pairs), one_hot(t.labels, o.p).double() - 1 / o.p
    w1 = initial_weights(o).to(device)
    return x, y, t, ZeroLossFlow(x[t.train], y[t.train], w1, o.activation, o.ridge)


def train(run: Run, o: Options, x, y, t: ModularTask, flow: ZeroLossFlow) -> None:
    network = Network(flow.w1, flow.point().w2)
    kind = {"adamw": torch.optim.AdamW, "gd": torch.optim.SGD}[o.optimiser]
    optimiser = kind(network.parameters(), lr=o.lr, weight_decay=o.weight_decay)
    x_train, y_train = x[t.train], y[t.train]

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

    def measure(step: int) -> dict[str, torch.Tensor | float]:
        row = {"time": flow.time, **describe(flow.w1, flow.point().w2)}
        if o.sgd:
            trained = {"steps": network.steps, **describe(network.w1, network.w2)}
            row |= {f"trained_{key}": value for key, value in trained.items()}
        return row

    state = {"network": network, "optimiser": optimiser} if o.sgd else {}
    for step in training(run, measure, variant=None, flow=flow, **state):  # it waits for the device
        flow.advance()
        # The weights decay by the factor 1 − lr · weight_decay an update: so long is each of them.
        while o.sgd and network.steps * o.lr * o.weight_decay < flow.time:
            hidden, _ = flow.activation(x_train @ network.w1)
            loss = 0.5 * (hidden @ network.w2 - y_train).square().sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            network.steps += 1


@script
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    if o.sgd and o.lr * o.weight_decay < 1e-9:
        raise UserError("--lr × --weight_decay takes 1e-9 at least, or a unit of time has no end")
    begin = start(o, o.torch_device())  # before the run's folder, since it checks the options
    run = Run("norm_minimisation", o)
    train(run, o, *begin)
    ends = (embedding(o, w1) for w1 in (initial_weights(o), run.saved_state("flow")["w1"]))
    run.save_figure(norm_figure(run.metrics(), *ends, o.optimiser * o.sgd or None, run.begun_by))
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
