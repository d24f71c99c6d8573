"""Delayed generalisation on two tasks that the paper does not have: parity and copying.

Sparse parity is the product of k of n signs, learnt by a ReLU network from minibatches (the set-up
of Merrill et al. 2023, arXiv 2303.11873). Copying asks a one-layer transformer to repeat a
sequence; its initial weights are three times too large, which delays generalisation. Claims under
test: centroid alignment rises when the network generalises; GrokAlign brings that forward.

    python delayed_tasks.py                    # parity
    python delayed_tasks.py --task copy        # --help lists what belongs to which task
    python delayed_tasks.py --jr 0.1           # either with GrokAlign
    python delayed_tasks.py --random_labels    # control: nothing to generalise to

Result (seeds 0, 1, 2; 11 and 15 seconds a run on two CPU cores; steps at which
training accuracy passes 0.99 and test accuracy 0.95, found on log-spaced measurements):

              memorised           generalised           with GrokAlign, generalised
    parity    952, 783, 952       6127, 4140, 3403      3754, 2798, 2537    --jr 0.1
    copy      84, 128, 84         1653, 1080, 1394      768, 648, 705       --jr 0.01

Parity: alignment is 0.14 at memorisation and 0.17 to 0.22 at generalisation on training points; on
test points it goes from 0.00 to 0.17 in the end. Random labels leave it at 0.14 and 0.00. Its
ceiling is √(k/n) = 0.27 once only k inputs matter. Copying: the centroid, the sum of all logits'
gradients, tells nothing. It ends at −0.37 with true labels and at −0.34 with random ones, for
cross-entropy leaves that sum free. The gradient of the margin, which is the centroid times the
label where the output is a scalar, goes from 0.04 to 0.35 between memorisation and generalisation;
random labels raise it to 0.23 on training points, and on test points not at all.
"""

import copy
from dataclasses import dataclass

import torch

from lab import plots
from lab.batches import minibatch
from lab.commands import command
from lab.compare import compare
from lab.errors import UserError
from lab.options import Shared, fields, option, parse
from lab.runs import Run, first_step
from lab.seeds import generator
from lab.training import train
from lab.transformer import OneLayerTransformer
from utils import Centroids, JacobianRegulariser

MEMORISED, GROKKED = 0.99, 0.95  # training and test accuracy that count as such
PROJECTIONS = 8  # directions that the measured Jacobian norm is estimated from, if it has more

DEFAULTS = {  # of the options that both tasks have; a batch of None is the whole training set
    "parity": {"samples": 1000, "batch": 32, "lr": 0.1, "weight_decay": 0.01, "steps": 10_000},
    "copy": {"samples": 40, "batch": None, "lr": 1e-3, "weight_decay": 1.0, "steps": 3000},
}
OWN = {  # options that one task has alone
    "parity": ("n", "k", "width"),
    "copy": ("symbols", "length", "init_scale", "beta2", "d_model", "heads", "d_mlp"),
}


def by_task(name: str, help: str, **bounds):
    """An option whose default depends on the task, and says so."""
    values = [f"{task} {DEFAULTS[task][name] or 'all'}" for task in DEFAULTS]
    return option(None, f"{help}; none for the task's own: {', '.join(values)}", **bounds)


# Panels of --compare: what a column, or two, shows of each run.
COMPARED = {
    "accuracy": ("test_accuracy", "train_accuracy"),
    "centroid alignment (mean)": ("alignment",),
    "‖J‖ (mean, Frobenius)": ("jacobian_norm",),
}


@dataclass
class Options(Shared):
    """Options of both tasks, then those of one of them."""

    task: str = option("parity", "what is learnt", choices=tuple(DEFAULTS))
    samples: int | None = by_task("samples", "training points", least=1)
    test_samples: int = option(1000, "test points, none of which is a training point", least=1)
    batch: int | None = by_task("batch", "training points of one update", least=1)
    lr: float | None = by_task("lr", "learning rate of SGD (parity), AdamW (copy)", above=0)
    weight_decay: float | None = by_task("weight_decay", "decay of the weights", least=0)
    steps: int | None = by_task("steps", "updates of the parameters", least=0)
    jr: float = option(0.0, "weight of the Jacobian regulariser, λ_Jac", least=0)
    random_labels: bool = option(False, "labels that are uniform draws, a control")
    n: int = option(40, "parity: signs in a point", least=1)
    k: int = option(3, "parity: signs that make the label, the first k", least=1)
    width: int = option(1000, "parity: hidden units", least=1)
    symbols: int = option(8, "copy: different symbols", least=2)
    length: int = option(6, "copy: symbols in a sequence", least=1)
    init_scale: float = option(3.0, "copy: factor on the initial weights", above=0)
    beta2: float = option(0.98, "copy: AdamW's β₂, that of Nanda et al.", least=0, most=0.9999)
    d_model: int = option(64, "copy: width of the residual stream", least=1)
    heads: int = option(4, "copy: attention heads, a divisor of d_model", least=1)
    d_mlp: int = option(256, "copy: hidden units of the MLP", least=1)
    num_logs: int = option(96, "measurements, log-spaced, first and last included", least=2)

    def __post_init__(self) -> None:
        """Fills in the task's defaults; raises UserError for options that do not go together."""
        for name, value in DEFAULTS[self.task].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for f in fields(self):
            for task, names in OWN.items():
                if task != self.task and f.name in names and getattr(self, f.name) != f.default:
                    raise UserError(f"--{f.name} belongs to --task {task}, not to {self.task}")
        if self.k > self.n:
            raise UserError(f"--k takes a whole number of at most --n {self.n}, got {self.k}")
        if self.d_model % self.heads:
            raise UserError(
                f"--heads takes a divisor of --d_model {self.d_model}, got {self.heads}"
            )
        values, length = self.alphabet()
        if self.samples + self.test_samples > values**length:
            raise UserError(
                f"--samples and --test_samples take at most {values**length} together, the number "
                f"of different points, got {self.samples} + {self.test_samples}"
            )

    def alphabet(self) -> tuple[int, int]:
        """Values of a component of a point, and components."""
        return (2, self.n) if self.task == "parity" else (self.symbols, self.length)

    def run_name(self) -> str:
        """What differs from the task's defaults."""
        given = copy.copy(self)
        for name, value in DEFAULTS[self.task].items():
            if getattr(self, name) == value:
                setattr(given, name, None)
        return Shared.run_name(given)


def points(o: Options, use: str) -> torch.Tensor:
    """Different points (samples + test_samples, components), uniform draws of whole numbers."""
    draws, number = generator(o.seed, use), o.samples + o.test_samples
    values, components = o.alphabet()
    found: dict[tuple[int, ...], None] = {}
    while len(found) < number:
        drawn = torch.randint(0, values, (number, components), generator=draws)
        found |= dict.fromkeys(map(tuple, drawn.tolist()))
    return torch.tensor(list(found)[:number])


class Parity(torch.nn.Module):
    """f(x) = w₂ᵀ ReLU(W₁ x + b), whose sign is to be the product of the first k entries of x.

    Without the bias the odd part of f would be linear, and the parity of three signs is odd.
    """

    def __init__(self, o: Options) -> None:
        super().__init__()
        self.k, draws = o.k, generator(o.seed, "weights")

        def uniform(*shape: int, fan: int) -> torch.nn.Parameter:
            weights = torch.empty(*shape, dtype=torch.float64)
            return torch.nn.Parameter(weights.uniform_(-(fan**-0.5), fan**-0.5, generator=draws))

        self.w1, self.b = uniform(o.width, o.n, fan=o.n), uniform(o.width, fan=o.n)
        self.w2 = uniform(o.width, fan=o.width)

    def inputs(self, drawn: torch.Tensor) -> torch.Tensor:  # bits (B, n) → signs (B, n)
        return 2 * drawn - 1

    def labels(self, drawn: torch.Tensor) -> torch.Tensor:  # bits (B, n) → signs (B,)
        return self.inputs(drawn)[:, : self.k].prod(1)

    def embed(self, x: torch.Tensor) -> torch.Tensor:  # signs (B, n) → points (B, n)
        return x.to(self.w1)

    def forward(self, points: torch.Tensor) -> torch.Tensor:  # (B, n) → (B,)
        return torch.relu(points @ self.w1.T + self.b) @ self.w2

    def margins(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # (B,)
        return y * outputs

    def loss(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.relu(1 - y * outputs).mean()  # hinge

    def correct(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # (B, 1)
        return (outputs.sign() == y)[:, None]


class Copy(torch.nn.Module):
    """A transformer that reads a sequence, then as many blanks, and fills the blanks with it.

    Its points, by which Jacobians are taken, are the token embeddings, blanks included.
    """

    def __init__(self, o: Options) -> None:
        super().__init__()
        self.symbols, self.length = o.symbols, o.length
        self.transformer = OneLayerTransformer(
            vocabulary=o.symbols + 1,  # the last token is the blank
            positions=2 * o.length,
            outputs=o.symbols,
            d_model=o.d_model,
            heads=o.heads,
            d_mlp=o.d_mlp,
            generator=generator(o.seed, "weights"),
            init_scale=o.init_scale,
        )

    def inputs(self, drawn: torch.Tensor) -> torch.Tensor:  # (B, L) → tokens (B, 2L)
        return torch.cat([drawn, torch.full_like(drawn, self.symbols)], dim=1)

    def labels(self, drawn: torch.Tensor) -> torch.Tensor:  # (B, L) → (B, L)
        return drawn

    def embed(self, x: torch.Tensor) -> torch.Tensor:  # tokens (B, 2L) → points (B, 2L, d_model)
        return self.transformer.embed(x)

    def forward(self, points: torch.Tensor) -> torch.Tensor:  # (B, 2L, d_model) → (B, L · symbols)
        return self.transformer.from_embeddings(points, last=self.length).flatten(1)

    def margins(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # (B,)
        logits = outputs.unflatten(1, (*y.shape[1:], self.symbols))
        return (logits.gather(2, y[..., None]).squeeze(2) - logits.mean(2)).sum(1)

    def loss(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs.view(-1, self.symbols), y.flatten())

    def correct(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # (B, L)
        return outputs.unflatten(1, (self.length, -1)).argmax(2) == y


def train_network(run: Run, o: Options) -> None:
    network = (Parity if o.task == "parity" else Copy)(o).to(run.device, o.torch_dtype())
    drawn = points(o, "data")
    labels = network.labels(points(o, "random labels") if o.random_labels else drawn)
    x, x_test = network.inputs(drawn).to(run.device).split([o.samples, o.test_samples])
    y, y_test = labels.to(run.device).split([o.samples, o.test_samples])

    parameters = list(network.parameters())
    if o.task == "parity":
        optimiser = torch.optim.SGD(parameters, o.lr, weight_decay=o.weight_decay, fused=True)
    else:
        optimiser = torch.optim.AdamW(
            parameters, o.lr, betas=(0.9, o.beta2), weight_decay=o.weight_decay, fused=True
        )
    projections = generator(o.seed, "projections")
    regulariser = JacobianRegulariser(network, generator=projections)  # exact for a scalar output

    def update(step: int) -> torch.Tensor:
        chosen = minibatch(o.seed, step, o.samples, o.batch)
        inputs, labels = x[chosen], y[chosen]
        if o.jr > 0:
            outputs, jacobian_norm = regulariser.outputs_and_norm(network.embed(inputs))
            loss = network.loss(outputs, labels) + o.jr * jacobian_norm
        else:
            loss = network.loss(network(network.embed(inputs)), labels)
        optimiser.zero_grad()
        loss.backward(inputs=parameters)
        optimiser.step()
        return loss

    def margin_centroids(inputs: torch.Tensor, labels: torch.Tensor):
        margins = Centroids(lambda points: network.margins(network(points), labels))
        return margins(network.embed(inputs))

    def measure(step: int) -> dict[str, torch.Tensor]:
        outputs, outputs_test = network(network.embed(x)), network(network.embed(x_test))
        correct, correct_test = network.correct(outputs, y), network.correct(outputs_test, y_test)
        norm = JacobianRegulariser(
            network,
            min(PROJECTIONS, outputs[0].numel()),
            generator=generator(o.seed, "measured projections", step),
        )
        alignments = Centroids(network)(network.embed(x)).alignments
        of_margin = margin_centroids(x, y)
        row = {
            "loss": network.loss(outputs, y),
            "train_accuracy": correct.double().mean(),
            "test_accuracy": correct_test.double().mean(),
            "parameter_norm": torch.stack([p.norm() for p in parameters]).norm(),
            "jacobian_norm": norm(network.embed(x)),
            # A scalar output's centroid points away from the label −1, as in xor_grokking.py.
            "alignment": (alignments * y if y.ndim == 1 else alignments).mean(),
            "margin_alignment": of_margin.alignments.mean(),
            "test_margin_alignment": margin_centroids(
                x_test[: o.samples], y_test[: o.samples]
            ).alignments.mean(),
        }
        if o.task == "parity":
            energies = of_margin.centroids.square()
            row["relevant_share"] = (energies[:, : o.k].sum(1) / energies.sum(1)).mean()
        else:
            row["train_sequence_accuracy"] = correct.all(1).double().mean()
            row["test_sequence_accuracy"] = correct_test.all(1).double().mean()
        return row

    state = {"network": network, "optimiser": optimiser, "projections": projections}
    train(run, update, measure, state)


def figure(run: Run, o: Options, events: dict[str, int | None]) -> None:
    m = run.metrics()
    blue, vermilion, green, *_, black = plots.COLOURS
    drawing, (left, middle, right) = plots.panels(3, run.command())
    lines = [
        (left, "train_accuracy", "train", black, "--"),
        (left, "test_accuracy", "test", black, "-"),
        (middle, "margin_alignment", "margin, training points", vermilion, "-"),
        (middle, "test_margin_alignment", "margin, test points", blue, "-"),
        (right, "jacobian_norm", "Jacobian, mean", vermilion, "-"),
        (right, "parameter_norm", "parameters", green, "-"),
    ]
    if o.task == "parity":
        lines += [(left, "relevant_share", "gradient, relevant share", blue, "-")]
        # x has entries ±1, so that no vector confined to k of them is closer to it.
        middle.axhline((o.k / o.n) ** 0.5, color="#888888", ls=":", lw=1.5, label="√(k/n)")
    else:
        lines += [
            (left, "test_sequence_accuracy", "test, whole sequences", blue, "-"),
            (middle, "alignment", "centroid, training points", green, "-"),
        ]
    plots.curves(m, lines)
    right.set_yscale("log")
    names = ("accuracy", "mean alignment", "Frobenius norm")
    for axes, name in zip((left, middle, right), names, strict=True):
        for event, style in zip(events.values(), ("--", "-"), strict=True):
            if event is not None:
                axes.axvline(event, color="#888888", ls=style, lw=1.2, zorder=0)
        axes.set_ylabel(name)
        plots.step_axis(axes, m["step"][-1])
        axes.legend(loc="upper left" if axes is left else "best")
    run.save_figure(drawing)


@command
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    if o.compare:
        compare("delayed_tasks", o, COMPARED)
        return
    run = Run("delayed_tasks", o)
    if not run.finished:
        train_network(run, o)
    m = run.metrics()
    events = {
        "memorised_at": first_step(m, "train_accuracy", MEMORISED),
        "grokked_at": first_step(m, "test_accuracy", GROKKED),
    }
    run.store(events)
    figure(run, o, events)
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
