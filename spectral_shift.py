"""Does grokking move the energy of the logits to low Laplacian modes? A test with its controls.

The geometric hypothesis ("Geometric GROKKING Unlocked & Explained", Discover AI, 2025): delayed
generalisation comes when energy moves to the smooth modes of an implicit graph. Here the logits of
a network that learns a + b modulo p are a function on all pairs, the torus C_p □ C_p, whose modes
are those of the two-dimensional Fourier transform. Two controls decide: relabelling the residues,
a → ca, changes nothing but their names; and a penalty on the Laplacian energy, over all pairs but
without their labels, is tried on a permuted torus and on the complete graph as well. Two rival
accounts beside it: weight decay alone (decoupled, L2, none), and circuits that become efficient,
which shows in the share of weights that can be zeroed, smallest first.

    python spectral_shift.py                     # the spectrum while the MLP groks, 23 s
    python spectral_shift.py --random_labels     # control: a task that can be memorised only
    python spectral_shift.py --config configs/spectral_shift_transformer.yaml    # 2.5 min
    python sweep.py configs/spectral_ablation.yaml    # 7 min; then report.py penalty_ablation
    python sweep.py configs/weight_decay_baseline.yaml    # decoupled, L2, none, 12 min

Verdict: results/spectral_shift/README.md.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from lab.bench import Run, Shared, Snapshots, UserError, generator, option, parse, script, training
from lab.data.modular import ModularTask, modular_addition
from lab.drawings.spectrum import spectrum_figure, write_tables
from lab.fast.modular_tables import ModularTransformer
from lab.measures import pruning, spectra
from lab.measures.events import grokking_events
from lab.networks.modular_mlp import ModularMLP


@dataclass
class Options(Shared):
    """A small modular task on which the MLP groks in half a minute."""

    model: str = option("mlp", "network", choices=("mlp", "transformer"))
    p: int = option(43, "modulus, a prime", least=2)
    train_fraction: float = option(0.5, "share of the p² pairs that train", above=0, most=1)
    random_labels: bool = option(False, "labels drawn at random: nothing to generalise")
    width: int = option(256, "hidden units of the MLP, or of the transformer's MLP", least=1)
    alpha: float = option(0.0, "width^(−alpha) scales the first layer", needs="model mlp")
    d_model: int = option(128, "the transformer's width", least=1, needs="model transformer")
    heads: int = option(4, "attention heads", least=1, needs="model transformer", divides="d_model")
    lr: float = option(3e-3, "learning rate, all pairs in one batch", above=0)
    beta2: float = option(0.98, "decay of the mean squared gradient", least=0, most=0.9999)
    decay: str = option(
        "decoupled", "weight decay as AdamW has it, or L2 in Adam", choices=("decoupled", "l2")
    )
    weight_decay: float = option(1.0, "strength of that decay; 0 for none", least=0)
    laplacian_penalty: float = option(0.0, "weight of the logits' Laplacian energy", least=0)
    penalty_form: str = option(
        "mean", "mean energy, or that over the logits' mean square", choices=("mean", "quotient")
    )
    permuted_torus: bool = option(False, "control: pairs are shuffled", needs="laplacian_penalty")
    complete_graph: bool = option(False, "control: all pairs neighbours", needs="laplacian_penalty")
    band: str = option("fraction", "low modes given by", choices=("fraction", "count", "cutoff"))
    band_value: float = option(0.1, "their share, their number, or largest eigenvalue", above=0)
    include_zero: bool = option(False, "count the constant mode as low; matters with --uncentred")
    uncentred: bool = option(False, "leave the means over classes and over pairs in the logits")
    snapshot_stride: int = option(4, "measurements from one kept spectrum to the next", least=1)
    projection_samples: int = option(64, "rows of the low-mode tables", least=0, names_run=False)
    steps: int = option(5000, "full-batch updates", least=0)
    num_logs: int = option(256, "measurements, log-spaced, at most one a step", least=2)


PANELS = {
    "accuracy": ("test_accuracy", "train_accuracy", "pruned_test_accuracy"),
    "parameter norm": ("parameter_norm",),
    "share of weights that can be zeroed": ("sparsity",),
    "share of low Laplacian modes": ("low_fraction",),
    "Laplacian energy": ("laplacian_energy",),
    "diagonal fraction": ("diagonal_fraction",),
}


def train(run: Run, o: Options, task: ModularTask, low: torch.Tensor) -> None:
    p, pairs, labels, train_set, test_set = task.to(run.device)
    x, y = pairs[train_set], labels[train_set]
    sizes = (o.width, o.alpha) if o.model == "mlp" else (o.d_model, o.heads, o.width)
    kind = ModularMLP if o.model == "mlp" else ModularTransformer
    network = kind(p, *sizes, generator(o.seed, "network")).to(run.device, o.torch_dtype())
    parameters = list(network.parameters())
    adam = torch.optim.AdamW if o.decay == "decoupled" else torch.optim.Adam
    betas = (0.9, o.beta2)
    optimiser = adam(parameters, o.lr, betas, weight_decay=o.weight_decay, fused=True)
    places = torch.randperm(p**2, generator=generator(o.seed, "torus")).to(run.device)
    graph = "complete" if o.complete_graph else places if o.permuted_torus else "torus"
    bands = spectra.every_relabelling(low).flatten(1).to(parameters[0])  # (relabellings, p²)
    drawn = torch.randint(min(1, len(bands) - 1), len(bands), (), generator=generator(o.seed, "c"))
    snapshots = Snapshots()

    def measure(step: int) -> dict[str, torch.Tensor]:
        logits = network.grid()
        each = logits.flatten(0, 1)
        right = (each.argmax(1) == labels).to(logits.dtype)
        grid = logits if o.uncentred else spectra.centred(logits)
        energies = spectra.spectrum(grid)
        if len(run.rows) % o.snapshot_stride == 0 or step == o.steps:
            snapshots.keep(str(step), step, energies.float())
            snapshots.keep(f"per_dim_step{step}", step, spectra.low_fractions(grid, low))
        return {
            "loss": cross_entropy(each[train_set], y),
            "penalty": spectra.penalty(logits, graph, o.penalty_form),
            "train_accuracy": right[train_set].mean(),
            "test_accuracy": right[test_set].mean(),
            "parameter_norm": torch.stack([w.norm() for w in parameters]).norm(),
            **spectra.signatures(spectra.shares(energies), bands, drawn),
            **pruning.pruned_circuit(network, (x, y), (pairs[test_set], labels[test_set])),
        }

    for step in training(run, measure, network=network, optimiser=optimiser, snapshots=snapshots):
        if o.laplacian_penalty > 0:
            logits = network.grid()  # one forward pass for the loss and the penalty
            outputs = logits.flatten(0, 1).index_select(0, train_set)
            penalty = spectra.penalty(logits, graph, o.penalty_form)
        else:
            outputs, penalty = network(x), 0.0
        loss = cross_entropy(outputs, y) + o.laplacian_penalty * penalty
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    run.store(grokking_events(run.metrics()))


@script
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    if o.permuted_torus and o.complete_graph:
        raise UserError("--complete_graph looks the same permuted; leave out --permuted_torus")
    if o.penalty_form == "quotient" and o.complete_graph:
        raise UserError("--penalty_form quotient is constant on the --complete_graph; take mean")
    if o.decay == "l2" and o.weight_decay == 0:
        raise UserError("--decay l2 takes a --weight_decay above 0, got 0")
    task = modular_addition(o.p, o.train_fraction, o.seed, o.random_labels)
    low = spectra.low_band(o.p, o.band, o.band_value, o.include_zero)
    run = Run("spectral_shift", o)
    train(run, o, task, low)
    kept = run.saved_state("snapshots")
    run.save_figure(spectrum_figure(run.metrics(), run.results(), kept, run.begun_by))
    write_tables(run.folder / "spectral", kept, o.p, o.projection_samples, o.seed)
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
