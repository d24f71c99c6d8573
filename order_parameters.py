"""Which order parameter sees a two-layer network grok modular addition, and which does not?

A sibling project follows the phase transition of an MLP that learns a + b modulo p by five order
parameters, over a grid of laziness (the first layer is multiplied by width^(−alpha)) and weight
decay. Here each is measured as that project defines it and as it has to be defined to tell grokking
from memorising (lab/orders.py), beside a control that can only memorise.

    python order_parameters.py --random_labels     # control: nothing to generalise
    python order_parameters.py                     # with the control's curves, if it is there
    python order_parameters.py --sweep --seeds 2   # alpha × weight decay, on all cores or one GPU

Result, p = 97, one seed, 8 minutes a run on one CPU thread: memorised at step 188, grokked at
14,366. Then and at the end (random labels at the end in brackets), the share of each neuron's
strongest frequency is 0.10, 0.66, 0.82 (0.09), the alignment of the hidden units 0.002, 0.10, 0.15
(0.02), that of the trace kernel 0.004, 0.051, 0.057 (0.022), and R² of the distances 0.03, 0.30,
0.19 (0.005). All four begin to rise while the test accuracy is 0.00. The sibling project's RQI
stays 0; at step 14,366 its effective rank, participation ratio and signal-to-noise ratio are still
below what the control comes to, and its kernel alignment is 0.153, the control's at most 0.146.

The grid at p = 59, 2 seeds, 46 minutes on one thread (--sweep --p 59 --train_fraction 0.4 --lr 1e-2
--beta2 0.98 --stop_at 0.99 --steps 15000 --num_logs 64 --seeds 2): weight decay decides. Grokking
comes at step 920 to 1,254 with 1 (half-way only at alpha 0.5), 5,915 to 8,066 with 0.1, and not
with less; alpha delays memorising, from step 26 to 143. Of all order parameters the neurons'
dominance and the hidden units' alignment alone keep the 14 runs that grokked apart from the 16 with
a decay of 0.01 or less.
"""

import dataclasses
import os
from dataclasses import dataclass

import numpy
import torch

from lab import fourier, orders, plots, spectra
from lab.commands import command
from lab.compare import compare
from lab.errors import TrainingError, UserError
from lab.modular import ModularMLP, ModularMLPs, ModularTask, modular_addition
from lab.options import Shared, option, parse
from lab.runs import Run, at_one_step, first_step, read_config, read_metrics
from lab.seeds import generator
from lab.sweeps import finished, folder_of, run_all
from lab.training import train_together

SCRIPT = "order_parameters"
MEMORISED, GROKKED = 0.99, 0.95  # training and test accuracy above which we say so
ALPHAS, DECAYS = (0.0, 0.1, 0.25, 0.5), (1e-3, 1e-2, 1e-1, 1.0)  # of --sweep
SUBSET = 500  # pairs of the sibling project's kernel
PANELS = {  # columns, the sibling project's definition first
    "accuracy": ("test_accuracy", "train_accuracy"),
    "representation quality": ("rqi_parallelogram", "rqi_distance"),
    "kernel alignment": tuple(f"kernel_alignment_{of}" for of in ("summed", "trace", "hidden")),
    "Fourier signal to noise, dB": ("snr_constant", "snr_neuron"),
    "loss": ("test_loss", "loss"),
    "effective rank of the first layer": ("effective_rank_squared", "effective_rank"),
    "participation ratio of hidden units": ("participation_ratio",),
}
COMPARED = dict(list(PANELS.items())[:4])  # by --compare


@dataclass
class Options(Shared):
    """The sibling project's set-up."""

    p: int = option(97, "modulus, an odd prime", least=3)
    train_fraction: float = option(0.3, "share of the p² pairs that train", above=0, most=1)
    random_labels: bool = option(False, "control: labels drawn at random")
    width: int = option(512, "hidden units", least=1)
    alpha: float = option(0.0, "the first layer is multiplied by width^(−alpha)", least=0)
    lr: float = option(1e-3, "learning rate of full-batch AdamW", above=0)
    beta2: float = option(0.999, "AdamW's decay of the mean squared gradient", least=0, most=0.9999)
    weight_decay: float = option(1.0, "AdamW's decoupled weight decay", least=0)
    stop_at: float | None = option(
        None, "end at the first measured test accuracy above this", least=0, most=1
    )
    sweep: bool = option(False, "run the grid of alpha and weight decay", names_run=False)
    seeds: int = option(1, "seeds of --sweep, from --seed on", least=1, names_run=False)
    workers: int | None = option(
        None, "runs of --sweep at a time, one thread each; none for one a core", least=1,
        names_run=False,
    )  # fmt: skip
    steps: int = option(30_000, "full-batch updates", least=0)
    num_logs: int = option(128, "measurements, log-spaced, at most one a step", least=2)


class Learner:
    """A network, what trains it, and what is measured of it."""

    def __init__(self, run: Run, o: Options) -> None:
        task = modular_addition(o.p, o.train_fraction, o.seed, o.random_labels)
        self.task = ModularTask(o.p, *(part.to(run.device) for part in task[1:]))
        self.pairs, self.labels = (part[self.task.train] for part in self.task[1:3])
        network = ModularMLP(o.p, o.width, o.alpha, generator(o.seed, "network"))
        self.network = network.to(run.device, o.torch_dtype())
        self.optimiser = torch.optim.AdamW(
            network.parameters(),
            o.lr,
            betas=(0.9, o.beta2),
            weight_decay=o.weight_decay,
            fused=True,
        )
        drawn = torch.randperm(o.p**2, generator=generator(o.seed, "subset"))[:SUBSET]
        self.drawn = drawn.to(run.device)
        self.ideal = orders.label_kernel(self.task.labels[self.drawn])
        self.singular_values = spectra.Snapshots(1)
        self.state = {
            "network": self.network,
            "optimiser": self.optimiser,
            "singular_values": self.singular_values,
        }

    def measure(self, step: int) -> dict[str, torch.Tensor]:
        task, network = self.task, self.network
        logits = network(task.pairs)
        losses = torch.nn.functional.cross_entropy(logits, task.labels, reduction="none")
        right = (logits.argmax(1) == task.labels).double()
        of_a, of_b = network.rows.split(task.p)
        both = torch.cat([of_a, of_b], dim=1)
        sigma = torch.linalg.svdvals(network.rows)
        self.singular_values.see(step, sigma, last=True)
        centred = orders.centred_alignments(network, task.labels)
        summed = orders.summed_logits_kernel(network, task.pairs[self.drawn])
        return {
            "loss": losses[task.train].mean(),
            "test_loss": losses[task.test].mean(),
            "train_accuracy": right[task.train].mean(),
            "test_accuracy": right[task.test].mean(),
            "rqi_parallelogram": orders.parallelogram_quality(of_a, of_b),
            "rqi_distance": orders.distance_quality(both),
            "effective_rank_squared": orders.effective_rank(sigma.square()),
            "effective_rank": orders.effective_rank(sigma),
            "participation_ratio": orders.participation_ratio(centred.covariance),
            "kernel_alignment_summed": orders.alignment(summed, self.ideal),
            "kernel_alignment_trace": centred.of_trace_kernel,
            "kernel_alignment_hidden": centred.of_hidden,
            "snr_constant": orders.decibels(orders.constant_snr(of_a, of_b)),
            "snr_neuron": orders.decibels(orders.neuron_snr(both)),
            "frequency_dominance": fourier.frequency_dominance(both),
        }


def train_networks(runs: list[Run]) -> None:
    """The networks of runs that differ in seed, alpha and weight decay, in one pass."""
    o = runs[0].options
    learners = [Learner(run, run.options) for run in runs]
    if len(runs) > 1:
        together = ModularMLPs([learner.network for learner in learners])
        pairs = torch.stack([learner.pairs for learner in learners])
        labels = torch.stack([learner.labels for learner in learners])

    def update(step: int) -> torch.Tensor:
        if len(runs) == 1:
            (one,) = learners
            losses = torch.nn.functional.cross_entropy(one.network(one.pairs), one.labels)
            one.optimiser.zero_grad()
            losses.backward()
        else:
            logits = together(pairs)
            losses = torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none").mean(1)
            together.backward(losses)
        for learner in learners:
            learner.optimiser.step()
        return losses

    def stop(row: dict[str, float]) -> bool:
        return o.stop_at is not None and row["test_accuracy"] > o.stop_at

    measures, states = [each.measure for each in learners], [each.state for each in learners]
    train_together(runs, update, measures, states, stop)
    for run in runs:
        m = run.metrics()
        run.store(
            {
                "memorised_at": first_step(m, "train_accuracy", MEMORISED),
                "grokked_at": first_step(m, "test_accuracy", GROKKED),
            }
        )


def one_run(o: Options) -> Run:
    """Trains, or finds trained, and draws."""
    modular_addition(o.p, o.train_fraction, o.seed, o.random_labels)  # bad options end here
    run = Run(SCRIPT, o)
    if not run.finished:
        train_networks([run])
    figure(run, o)
    return run


def in_one_pass(grid: list[Options]) -> None:
    """Makes the runs that are not finished, all networks at once."""
    runs = [Run(SCRIPT, o) for o in grid]
    for together in at_one_step(run for run in runs if not run.finished):
        train_networks(together)
        for run in together:
            figure(run, run.options)


def figure(run: Run, o: Options) -> None:
    curves = [(run.metrics(), "-")]
    control = folder_of(SCRIPT, dataclasses.replace(o, random_labels=True, stop_at=None, name=None))
    if not o.random_labels and (control / "metrics.csv").exists():
        curves.append((read_metrics(control), "--"))
    drawing, axes = plots.panels(4, run.command(), rows=2)
    for panel, (label, names) in zip(axes.flat, PANELS.items(), strict=False):
        for m, style in curves:
            for colour, name in zip(plots.COLOURS, names, strict=False):
                shown = name.replace("_", " ") if style == "-" else None
                panel.plot(m["step"], m[name], color=colour, ls=style, label=shown)
        panel.set_ylabel(label)
        if "rank" in label:
            panel.margins(y=0.25)  # room for the legend
        panel.legend(loc="lower left" if "rank" in label else "best")
    kept = run.saved_state("singular_values")["kept"]
    last = axes.flat[-1]
    sigma = torch.stack([kept[step] for step in sorted(kept)])
    plots.graded_lines(last, sorted(kept), dict(enumerate(sigma.T.numpy())))
    for line in last.lines:
        line.set_linewidth(0.6)
    last.set_ylabel("singular values of the first layer")
    for panel in axes.flat:
        for event in run.results().values():
            if event is not None:
                panel.axvline(event, color="#999999", lw=1, zorder=0)
        plots.step_axis(panel, curves[0][0]["step"][-1])
    if len(curves) > 1:
        drawing.suptitle("dashed: random labels", fontsize=11)
    run.save_figure(drawing)


def sweep(o: Options) -> Run:
    """Runs the grid, or finds it run, and draws the phase diagram of what is finished."""
    modular_addition(o.p, o.train_fraction, o.seed)  # so that bad options end here
    plain = dataclasses.replace(o, sweep=False, seeds=1, workers=None, name=None)
    cells = {
        (alpha, decay): [
            dataclasses.replace(plain, seed=seed, alpha=alpha, weight_decay=decay)
            for seed in range(o.seed, o.seed + o.seeds)
        ]
        for alpha in ALPHAS
        for decay in DECAYS
    }
    grid = [cell[i] for i in range(o.seeds) for cell in cells.values()]  # seed by seed
    name = o.name or "sweep," + o.run_name()
    run = Run(SCRIPT, dataclasses.replace(o, name=name.removesuffix(",default")))
    failed: list[str] = []
    if o.torch_device().type == "cuda":
        in_one_pass(grid)
    else:
        failed = run_all(SCRIPT, grid, o.workers or os.cpu_count() or 1)
    times = {place: times_of(cell) for place, cell in cells.items()}
    run.store(
        {f"alpha={alpha},weight_decay={decay}": t for (alpha, decay), t in times.items() if t}
    )
    phase_diagram(run, times)
    if failed:
        raise TrainingError(f"{len(failed)} of {len(grid)} runs failed; the first: {failed[0]}")
    return run


def times_of(cell: list[Options]) -> list[dict[str, int | None]]:
    """What `train_networks` stored of each finished run, with the delay between the two events."""
    found = []
    for each in cell:
        if finished(SCRIPT, each):
            times = read_config(folder_of(SCRIPT, each) / "config.yaml")["results"]
            known = None not in times.values()
            delay = times["grokked_at"] - times["memorised_at"] if known else None
            found.append({"seed": each.seed, **times, "delay": delay})
    return found


def phase_diagram(run: Run, times: dict[tuple[float, float], list]) -> None:
    """Heat maps of means over seeds, with how many of them got there where not all did."""
    drawing, axes = plots.panels(3, run.command())
    titles = {
        "memorised_at": "steps to memorise",
        "grokked_at": "steps to grok",
        "delay": "delay, from memorising to grokking",
    }
    for panel, (event, title) in zip(axes, titles.items(), strict=True):
        means = numpy.full((len(DECAYS), len(ALPHAS)), numpy.nan)
        texts = numpy.full(means.shape, "no run", dtype=object)
        for place in numpy.ndindex(means.shape):
            here = times[ALPHAS[place[1]], DECAYS[place[0]]]
            steps = [each[event] for each in here if each[event] is not None]
            if steps:
                means[place] = numpy.mean(steps)
                some = f"\n{len(steps)} of {len(here)}" if len(steps) < len(here) else ""
                texts[place] = f"{means[place]:,.0f}{some}"
            elif here:
                texts[place] = "never"
        plots.heat_map(panel, means, texts, x=ALPHAS, y=DECAYS)
        panel.set_xlabel("alpha")
        panel.set_ylabel("weight decay")
        panel.set_title(title)
    run.save_figure(drawing)


@command
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    if o.compare:
        compare(SCRIPT, o, COMPARED)
        return
    for fixed in ("alpha", "weight_decay"):
        if o.sweep and getattr(o, fixed) != getattr(Options, fixed):
            raise UserError(f"--{fixed} is one of the axes of --sweep; leave it out")
    run = sweep(o) if o.sweep else one_run(o)
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
