"""Does grokking move the energy of the logits to low Laplacian modes? A test with its controls.

The geometric hypothesis ("Geometric GROKKING Unlocked & Explained", Discover AI, 2025): delayed
generalisation comes when energy moves to the smooth modes of an implicit graph. Here the logits of
a network that learns a + b modulo p are a function on all pairs, the torus C_p □ C_p, whose modes
are those of the two-dimensional Fourier transform. Two controls decide. Relabelling the residues,
a → ca, changes nothing but their names: a measure that changes under it means nothing for
this task. And a penalty on the Laplacian energy is tried on a randomly permuted torus as well, and
on the complete graph, where no pair is nearer than another and the energy is the logits' variance.

    python spectral_shift.py                     # the spectrum while the MLP groks
    python spectral_shift.py --random_labels     # control: a task that can be memorised only
    python spectral_shift.py --ablation          # Laplacian penalty, and its controls
    python spectral_shift.py --config configs/spectral_shift_transformer.yaml

The penalty is taken over all pairs: it sees the inputs of the test pairs, though not their labels.

Result, MLP at p = 43, 3 seeds, half a minute a run on one CPU thread. It does not: from the start
to the end, after grokking at step 2,236 to 2,312, the low fraction falls from 0.30–0.31 to
0.23–0.25 and the Laplacian energy rises from 0.56–0.57 to 0.89–0.90. What rises is the diagonal
fraction, the share that is a function of a + b: 0.003 to 0.59–0.61, against 0.005 with random
labels. In the transformer at p = 59 (3 seeds, 2 minutes each) it goes from 0.001 to 0.80–0.90,
while relabelling one trained network moves its low fraction between 0.007 and 0.72. The penalty
(weight 0.1, 3 seeds each): on the true torus the MLP never groks (at best 0.46–0.53 test
accuracy, 0.21–0.25 at the end); on the permuted torus test accuracy passes 0.95 at 547–585 and
falls back to 0.68–0.72; on the complete graph it passes at 511–529 and ends at 0.95–0.98. The
penalty without geometry does best, that with the torus's does harm. With --penalty_form quotient
and weight 1 (3 seeds) neither torus gets there, 0.59–0.74 on the true one and 0.67–0.89 on the
permuted one, though the first brings the low fraction to 0.998.
"""

import dataclasses
from dataclasses import dataclass

import numpy
import torch
from matplotlib.colors import LogNorm

from lab import plots, spectra
from lab.commands import command
from lab.compare import compare
from lab.errors import UserError
from lab.modular import ModularMLP, ModularTask, ModularTransformer, modular_addition
from lab.options import Shared, option, parse
from lab.runs import Run, first_step
from lab.seeds import generator
from lab.training import train

MEMORISED, GROKKED = 0.99, 0.95  # training and test accuracy above which we say so
GRAPHS = {  # of the ablation, and the options that choose them
    "no penalty": {"laplacian_penalty": 0.0},
    "true torus": {},
    "permuted torus": {"permuted_torus": True},
    "complete graph": {"complete_graph": True},
}


# Panels of --compare: what a column, or two, shows of each run.
COMPARED = {
    "accuracy": ("test_accuracy", "train_accuracy"),
    "share of low Laplacian modes": ("low_fraction",),
    "Laplacian energy": ("laplacian_energy",),
    "diagonal fraction": ("diagonal_fraction",),
}


@dataclass
class Options(Shared):
    """A small modular task on which the MLP groks in half a minute."""

    model: str = option("mlp", "network", choices=("mlp", "transformer"))
    p: int = option(43, "modulus, a prime", least=2)
    train_fraction: float = option(0.5, "share of the p² pairs that train", above=0, most=1)
    random_labels: bool = option(False, "labels drawn at random: nothing to generalise")
    width: int = option(256, "hidden units of the MLP, or of the transformer's MLP", least=1)
    alpha: float = option(0.0, "the MLP's first layer is multiplied by width^(−alpha)")
    d_model: int = option(128, "width of the transformer's residual stream", least=1)
    heads: int = option(4, "attention heads of the transformer, dividing d_model", least=1)
    lr: float = option(3e-3, "learning rate of full-batch AdamW", above=0)
    beta2: float = option(0.98, "AdamW's decay of the mean squared gradient", least=0, most=1)
    weight_decay: float = option(1.0, "AdamW's decoupled weight decay", least=0)
    laplacian_penalty: float = option(
        0.0,
        "weight of the logits' Laplacian energy in the loss; --ablation takes 0.1 for 0",
        least=0,
    )
    penalty_form: str = option(
        "mean",
        "the energy's mean over pairs and classes, or its quotient by that of the logits' squares",
        choices=("mean", "quotient"),
    )
    permuted_torus: bool = option(False, "penalise on a torus of randomly permuted pairs: control")
    complete_graph: bool = option(False, "penalise on the graph of all edges: control")
    band: str = option(
        "fraction",
        "how the low modes are chosen: a share of the modes, a number, or a largest eigenvalue",
        choices=("fraction", "count", "cutoff"),
    )
    band_value: float = option(0.1, "the share, number or eigenvalue of --band", above=0)
    include_zero: bool = option(
        False, "count the constant mode as low; needs --uncentred to matter"
    )
    uncentred: bool = option(False, "leave the means over classes and over pairs in the logits")
    snapshot_stride: int = option(4, "measurements from one kept spectrum to the next", least=1)
    ablation: bool = option(
        False, "train and compare without and with penalty, on every graph", names_run=False
    )
    seeds: int = option(3, "seeds of --ablation, from --seed on", least=1, names_run=False)
    steps: int = option(5000, "full-batch updates", least=0)
    num_logs: int = option(256, "measurements, log-spaced, at most one a step", least=2)


def network_of(o: Options) -> torch.nn.Module:
    draws = generator(o.seed, "network")
    if o.model == "mlp":
        return ModularMLP(o.p, o.width, o.alpha, draws)
    return ModularTransformer(o.p, o.d_model, o.heads, o.width, draws)


def train_network(run: Run, o: Options, task: ModularTask, low: torch.Tensor) -> None:
    place = {"device": run.device, "dtype": o.torch_dtype()}
    labels, train_set, test_set = (
        part.to(run.device) for part in (task.labels, task.train, task.test)
    )
    train_pairs, train_labels = task.pairs.to(run.device)[train_set], labels[train_set]
    network = network_of(o).to(**place)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=o.lr, betas=(0.9, o.beta2), weight_decay=o.weight_decay, fused=True
    )

    places = None
    if o.permuted_torus:
        places = torch.randperm(o.p**2, generator=generator(o.seed, "torus")).to(run.device)

    def penalty(logits: torch.Tensor) -> torch.Tensor:
        if o.complete_graph:
            return spectra.complete_graph_energy(logits)
        energy = spectra.laplacian_energy(logits, places)
        if o.penalty_form == "quotient":
            energy = energy / spectra.centred(logits).square().mean()
        return energy

    def update(step: int) -> torch.Tensor:
        if o.laplacian_penalty > 0:
            logits = network.grid()  # one forward pass for the loss and the penalty
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1)[train_set], train_labels)
            loss = loss + o.laplacian_penalty * penalty(logits)
        else:
            loss = torch.nn.functional.cross_entropy(network(train_pairs), train_labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss

    units = torch.arange(1, max(o.p // 2, 1) + 1)  # c and −c relabel alike, the logits being real
    bands = spectra.relabelled(low, units).flatten(1).to(**place)  # (units, p²), c = 1 first
    drawn = torch.randint(min(1, len(units) - 1), len(units), (), generator=generator(o.seed, "c"))
    eigenvalues = spectra.eigenvalues(o.p).to(**place)
    snapshots = spectra.Snapshots(o.snapshot_stride)

    def measure(step: int) -> dict[str, torch.Tensor]:
        logits = network.grid()
        each = logits.flatten(0, 1)
        right = (each.argmax(1) == labels).to(logits.dtype)
        energies = spectra.spectrum(logits if o.uncentred else spectra.centred(logits))
        snapshots.see(step, energies, last=step == o.steps)
        share = spectra.shares(energies)
        low_fractions = bands @ share.flatten()
        return {
            "loss": torch.nn.functional.cross_entropy(each[train_set], train_labels),
            "penalty": penalty(logits),
            "train_accuracy": right[train_set].mean(),
            "test_accuracy": right[test_set].mean(),
            "low_fraction": low_fractions[0],
            "low_fraction_relabelled": low_fractions[drawn],
            "low_fraction_least": low_fractions.min(),
            "low_fraction_most": low_fractions.max(),
            "laplacian_energy": (eigenvalues * share).sum(),
            "spectral_entropy": spectra.spectral_entropy(share),
            "inverse_participation": spectra.inverse_participation(share),
            "top10_share": spectra.top_share(share, 10),
            "diagonal_fraction": spectra.diagonal_fraction(share),
        }

    train(
        run,
        update,
        measure,
        {"network": network, "optimiser": optimiser, "snapshots": snapshots},
    )
    run.store(events(run.metrics()))


def events(metrics: dict[str, numpy.ndarray]) -> dict[str, float | None]:
    """First measured steps of memorisation and of generalisation, or None, and how it ended."""
    return {
        "memorised_at": first_step(metrics, "train_accuracy", MEMORISED),
        "grokked_at": first_step(metrics, "test_accuracy", GROKKED),
        "last_test_accuracy": float(metrics["test_accuracy"][-1]),
    }


def one_run(o: Options) -> Run:
    """Trains, or finds trained, and draws."""
    task = modular_addition(o.p, o.train_fraction, o.seed, o.random_labels)
    low = spectra.low_band(o.p, o.band, o.band_value, o.include_zero)
    run = Run("spectral_shift", o)
    if not run.finished:
        train_network(run, o, task, low)
    figure(run)
    return run


def figure(run: Run) -> None:
    m, found = run.metrics(), events(run.metrics())
    drawing, (maps, curves) = plots.panels(3, run.command(), rows=2)

    kept = run.saved_state("snapshots")["kept"]
    steps = numpy.array(sorted(kept))
    last = int(steps[-1])
    moments = {"before training": 0, "memorised": found["memorised_at"], "after training": last}
    half = run.options.p // 2
    for axes, (moment, step) in zip(maps, moments.items(), strict=True):
        nearest = last if step is None else int(steps[abs(steps - step).argmin()])
        share = spectra.shares(kept[nearest]).numpy()
        image = axes.imshow(
            numpy.roll(share, (half, half), (0, 1)).clip(1e-6),
            norm=LogNorm(1e-6, 1e-1),
            cmap=plots.SEQUENTIAL,
            origin="lower",
            extent=2 * (-half - 0.5, run.options.p - half - 0.5),
            interpolation="nearest",
        )
        axes.set_title(f"{'never ' * (step is None)}{moment}, step {nearest:,}")
        axes.set_xlabel("frequency in b")
        axes.set_ylabel("frequency in a")
        axes.grid(False)
    drawing.colorbar(image, ax=maps, label="share of the logits' energy", extend="both")

    left, middle, right = curves
    blue, orange, green, pink, _, sky, black = plots.COLOURS
    least, most = m["low_fraction_least"], m["low_fraction_most"]
    every = "low fraction, every relabelling"
    middle.fill_between(m["step"], least, most, color=sky, alpha=0.35, lw=0, label=every)
    lines = (
        (left, "train_accuracy", "train accuracy", black, "--"),
        (left, "test_accuracy", "test accuracy", black, "-"),
        (middle, "low_fraction", "low fraction", blue, "-"),
        (middle, "low_fraction_relabelled", "low fraction, one relabelling", orange, "--"),
        (middle, "laplacian_energy", "Laplacian energy", black, ":"),
        (right, "diagonal_fraction", "diagonal fraction", blue, "-"),
        (right, "top10_share", "share of the ten strongest modes", orange, "-"),
        (right, "inverse_participation", "inverse participation", green, "-"),
        (right, "spectral_entropy", "spectral entropy", pink, "-"),
    )
    plots.curves(m, lines)
    left.set_ylabel("accuracy")
    middle.set_ylabel("depends on the residues' names")
    right.set_ylabel("does not depend on their names")
    for axes in curves:
        for event in ("memorised_at", "grokked_at"):
            if (step := found[event]) is not None:
                axes.axvline(step, color="#999999", lw=1, zorder=0)
        axes.set_ylim(0, (1.05 if axes is left else 1.5) * axes.dataLim.y1)  # room for the legend
        axes.legend(loc="upper left")
        plots.step_axis(axes, m["step"][-1])
    run.save_figure(drawing)


def ablation(o: Options) -> Run:
    """Trains, or finds trained, every graph and seed, and compares the steps to generalisation."""
    common = dataclasses.replace(
        o,
        ablation=False,
        seeds=Options.seeds,
        name=None,
        laplacian_penalty=o.laplacian_penalty or 0.1,
    )
    curves: dict[str, list] = {
        graph: []
        for graph in GRAPHS
        if (o.penalty_form, graph) != ("quotient", "complete graph")  # where it is constant
    }
    for seed in range(o.seed, o.seed + o.seeds):
        for graph in curves:
            each = dataclasses.replace(common, seed=seed, **GRAPHS[graph])
            if graph == "no penalty":
                each.penalty_form = Options.penalty_form
            curves[graph].append(one_run(each).metrics())
    name = o.name or "ablation," + o.run_name()
    run = Run("spectral_shift", dataclasses.replace(o, name=name.removesuffix(",default")))
    run.store({graph: [events(m) for m in runs] for graph, runs in curves.items()})
    comparison(run, curves)
    return run


def comparison(run: Run, curves: dict[str, list]) -> None:
    drawing, (left, right) = plots.panels(2, run.command())
    for i, (graph, runs) in enumerate(curves.items()):
        colour = plots.COLOURS[i]
        for k, m in enumerate(runs):
            found = events(m)
            end = m["step"][-1]
            place = i + 0.12 * (k - (len(runs) - 1) / 2)
            memorised = found["memorised_at"]
            if memorised is not None:
                left.plot(place, memorised, "o", mfc="none", color=colour)
            grokked = found["grokked_at"]
            left.plot(
                place, end if grokked is None else grokked, "x" if grokked is None else "o",
                color=colour,
            )  # fmt: skip
            right.plot(m["step"], m["test_accuracy"], color=colour, label=graph if k == 0 else None)
    left.set_xticks(range(len(curves)), [graph.replace(" ", "\n") for graph in curves])
    left.set_yscale("log")
    left.set_ylabel("step of memorisation (○), of grokking (●)\nor end without grokking (×)")
    right.set_ylabel("test accuracy")
    right.legend(loc="upper left")
    plots.step_axis(right, max(m["step"][-1] for runs in curves.values() for m in runs))
    run.save_figure(drawing)


def check(o: Options) -> None:
    """Raises UserError for options that do not go together."""
    for control in ("permuted_torus", "complete_graph"):
        if getattr(o, control) and o.ablation:
            raise UserError(f"--{control} is one of the cases of --ablation; leave it out")
        if getattr(o, control) and o.laplacian_penalty == 0:
            raise UserError(f"--{control} takes a --laplacian_penalty above 0, got 0")
    if o.permuted_torus and o.complete_graph:
        raise UserError("--complete_graph looks the same permuted; leave out --permuted_torus")
    if o.penalty_form == "quotient" and o.complete_graph:
        raise UserError("--penalty_form quotient is constant on the --complete_graph; take mean")
    if o.model == "transformer" and o.d_model % o.heads:
        raise UserError(f"--heads takes a divisor of --d_model {o.d_model}, got {o.heads}")
    if o.beta2 == 1:
        raise UserError("--beta2 takes a number below 1, got 1")


@command
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    if o.compare:
        compare("spectral_shift", o, COMPARED)
        return
    check(o)
    run = ablation(o) if o.ablation else one_run(o)
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
