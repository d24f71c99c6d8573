"""Which order parameter sees a two-layer network grok modular addition, and which does not?

A public project, "tracking phase transition diagnostics with five order parameters" (its README, of
a package `grokking`), follows an MLP that learns a + b modulo p over a grid of laziness (the first
layer is multiplied by width^(−alpha)) and weight decay. Here each parameter is measured as that
project defines it, and in a form that tells grokking from memorising (lab/measures/orders.py), with
a control that can only memorise. Claim under test: they mark the phase transition.

    python order_parameters.py --random_labels         # control: nothing to generalise, 15 min
    python order_parameters.py                         # with the control's curves, 13 min
    python order_parameters.py --p 43 --train_fraction 0.5 --lr 1e-2 --beta2 0.98 --steps 1500
    python sweep.py configs/order_parameters_official.yaml    # to the letter, 90 min
    python sweep.py configs/phase_diagram.yaml         # alpha × weight decay at p = 59, 46 min
    python report.py phase_diagram p=59 …              # its heat maps: the grid's other options

The third line groks in under a minute; the words of the last are the options in the grid's file.
Verdict: results/order_parameters/README.md.
"""

import dataclasses
from dataclasses import dataclass

import numpy
import torch
from torch.nn.functional import cross_entropy

from lab.bench import Run, Shared, Snapshots, double, generator, option, parse, script, training
from lab.bench.files import read_metrics
from lab.bench.loop import above
from lab.data.modular import ModularTask, modular_addition
from lab.drawings.orders import orders_figure
from lab.measures import fourier, orders
from lab.measures.events import grokking_events
from lab.networks.modular_mlp import INITS, ModularMLP


@dataclass
class Options(Shared):
    """The other project's set-up, with torch's initial weights and over all pairs."""

    p: int = option(97, "modulus, an odd prime", least=3)
    train_fraction: float = option(0.3, "share of the p² pairs that train", above=0, most=1)
    random_labels: bool = option(False, "control: labels drawn at random")
    width: int = option(512, "hidden units", least=1)
    init: str = option("uniform", "initial weights; normal ones are √3 larger", choices=INITS)
    alpha: float = option(0.0, "the first layer is multiplied by width^(−alpha)", least=0)
    lr: float = option(1e-3, "learning rate of full-batch AdamW", above=0)
    beta2: float = option(0.999, "AdamW's decay of the mean squared gradient", least=0, most=0.9999)
    weight_decay: float = option(1.0, "AdamW's decoupled weight decay", least=0)
    stop_at: float | None = option(
        None, "end at the first measured test accuracy above this", least=0, most=1
    )
    measured_on: str = option(
        "all", "pairs of kernel_alignment_summed and participation_ratio", choices=("all", "test")
    )
    steps: int = option(30_000, "full-batch updates", least=0)
    num_logs: int = option(128, "measurements, log-spaced, at most one a step", least=2)


SUBSET = 500  # pairs of the other project's kernel
PANELS = {  # columns, the other project's definition first
    "accuracy": ("test_accuracy", "train_accuracy"),
    "representation quality": ("rqi_parallelogram", "rqi_distance"),
    "kernel alignment": tuple(f"kernel_alignment_{of}" for of in ("summed", "trace", "hidden")),
    "Fourier signal to noise, dB": ("snr_constant", "snr_neuron"),
    "loss": ("test_loss", "loss"),
    "effective rank of the first layer": ("effective_rank_squared", "effective_rank"),
    "participation ratio of hidden units": ("participation_ratio",),
}


def train(run: Run, o: Options, task: ModularTask) -> None:
    task = task.to(run.device)
    x, y = task.pairs[task.train], task.labels[task.train]
    network = ModularMLP(o.p, o.width, o.alpha, generator(o.seed, "network"), o.init)
    network.to(run.device, o.torch_dtype())
    optimiser = torch.optim.AdamW(
        network.parameters(), o.lr, (0.9, o.beta2), weight_decay=o.weight_decay, fused=True
    )
    everywhere = o.measured_on == "all"
    measured = torch.arange(o.p**2, device=run.device) if everywhere else task.test
    drawn = torch.randperm(len(measured), generator=generator(o.seed, "subset"))[:SUBSET]
    subset = measured[drawn.to(run.device)]
    ideal, snapshots = orders.label_kernel(task.labels[subset]), Snapshots()

    def measure(step: int) -> dict[str, torch.Tensor]:
        logits = network(task.pairs)
        losses = cross_entropy(logits, task.labels, reduction="none")
        right = logits.argmax(1) == task.labels
        of_a, of_b = network.rows.split(o.p)
        both = torch.cat([of_a, of_b], dim=1)
        sigma = torch.linalg.svdvals(network.rows)
        snapshots.keep(str(step), step, sigma.float())
        centred = orders.centred_kernel_alignments(network, task.labels)
        summed = orders.summed_logits_kernel(network, task.pairs[subset])
        covariance = centred.covariance
        if not everywhere:
            covariance = orders.hidden_covariance(network, task.pairs[measured])
        return {
            "loss": losses[task.train].mean(),
            "test_loss": losses[task.test].mean(),
            "train_accuracy": double(right[task.train]).mean(),
            "test_accuracy": double(right[task.test]).mean(),
            "rqi_parallelogram": orders.parallelogram_quality(of_a, of_b),
            "rqi_distance": orders.distance_quality(both),
            "effective_rank_squared": orders.effective_rank(sigma.square()),
            "effective_rank": orders.effective_rank(sigma),
            "participation_ratio": orders.participation_ratio(covariance),
            "kernel_alignment_summed": orders.kernel_alignment(summed, ideal),
            "kernel_alignment_trace": centred.of_trace_kernel,
            "kernel_alignment_hidden": centred.of_hidden,
            "snr_constant": orders.decibels(orders.constant_snr(of_a, of_b)),
            "snr_neuron": orders.decibels(orders.neuron_snr(both)),
            "frequency_dominance": fourier.frequency_dominance(both),
        }

    state = {"network": network, "optimiser": optimiser, "snapshots": snapshots}
    for step in training(run, measure, stop=above("test_accuracy", o.stop_at), **state):
        loss = cross_entropy(network(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    run.store(grokking_events(run.metrics()))


def control(run: Run, o: Options) -> dict[str, numpy.ndarray] | None:
    """The measurements of the same run with random labels, if it is there."""
    same = dataclasses.replace(o, random_labels=True, stop_at=None, name=None)
    folder = run.folder.with_name(same.run_name())
    there = not o.random_labels and (folder / "metrics.csv").exists()
    return read_metrics(folder) if there else None


@script
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    task = modular_addition(o.p, o.train_fraction, o.seed, o.random_labels)
    run = Run("order_parameters", o)
    train(run, o, task)
    parts = (run.metrics(), control(run, o), run.saved_state("snapshots"), run.results())
    run.save_figure(orders_figure(PANELS, *parts, run.begun_by))
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
