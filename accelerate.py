"""Which method makes a small network grok sooner: one run of the leaderboard.

AdamW, eleven methods that are said to accelerate grokking or to help generalisation, and six tasks
that take seconds; a seventh, omnigrok_mnist, is no part of the comparison. Every method gets the
same number of trials, drawn from one space of learning rates and weight decays and at most two
knobs of its own, with seed 0; the best trial's settings are then scored with seeds 1 to 10. Claim
under test: methods are faster than AdamW with its learning rate and weight decay tuned alike.

    python accelerate.py --task sparse_parity --method grokalign            # the source's settings
    python accelerate.py --task sparse_parity --method grokalign --trial 3  # those of a trial
    python accelerate.py --method grokfast_ema --lr 0.01 --weight_decay 1 --knobs alpha=0.9 lamb=5
    python sweep.py configs/leaderboard.yaml --runs_per_process 24          # all trials
    python report.py leaderboard                  # what is still to be scored, then the tables

A task is learnt when the test accuracy has reached its target at a measurement and at each of the
next ten, every ten updates; the first of them is the score. A run ends with that, or at --steps,
and one that diverges has not learnt it. A method is a file in lab/methods/, with its source.

Verdict: results/accelerate/README.md.
"""

from dataclasses import dataclass

import numpy
import torch

from lab.bench import Run, Shared, TrainingError, UserError, option, parse, script, training
from lab.bench.files import first_step
from lab.bench.levels import MEMORISED
from lab.bench.plots import level, metric_panels
from lab.measures.losses import accuracy
from lab.methods.interface import Method, methods
from lab.methods.tasks import TASKS, Task
from lab.methods.trials import drawn, given

METHODS = methods()


@dataclass
class Options(Shared):
    """A task, a method and its settings."""

    task: str = option("modular_mlp", "what is learnt", choices=tuple(TASKS))
    method: str = option("adamw", "what trains it", choices=tuple(METHODS))
    trial: int | None = option(
        None, "number of a trial, which draws all settings; none for given ones", least=0, most=4095
    )
    lr: float | None = option(None, "learning rate; none for 0.001 or the trial's", above=0)
    weight_decay: float | None = option(
        None, "decoupled, in units of the rate; none for 0.01 or the trial's", least=0
    )
    knobs: tuple[str, ...] = option(
        (), "numbers of the method's own, such as alpha=0.98 lamb=2; by default its source's"
    )
    data_dir: str = option("data", "folder of MNIST, for omnigrok_mnist", names_run=False)
    steps: int = option(2100, "updates at most, the last hundred to see that it holds", least=0)


EVERY, HELD = 10, 10  # updates between measurements; measurements for which the target is to hold
PANELS = {"accuracy": ("test_accuracy", "train_accuracy"), "loss": ("loss",)}


def settings_of(o: Options) -> dict[str, float]:
    """Learning rate, weight decay and knobs; raises UserError for a trial with others as well."""
    if o.trial is None:
        return given(METHODS[o.method], o.lr, o.weight_decay, o.knobs)
    if o.lr is not None or o.weight_decay is not None or o.knobs:
        raise UserError("--trial draws --lr, --weight_decay and --knobs, so that none can be given")
    return drawn(METHODS[o.method], o.task, o.trial)


def train(run: Run, task: Task, method: Method, lr: float, weight_decay: float) -> None:
    x, y, x_test, y_test = task.data
    network, parameters = task.network, method.parameters
    optimiser = method.optimiser(lr, weight_decay)
    method.draws = run.generator("method")

    def measure(step: int) -> dict[str, torch.Tensor]:
        outputs = task.outputs(x)
        return {
            "loss": task.loss(outputs, y),
            "train_accuracy": accuracy(outputs, y),
            "test_accuracy": accuracy(task.outputs(x_test), y_test),
        }

    def stop(row: dict[str, float]) -> bool:
        return held_at(run.metrics(), task.target) is not None

    state = {"network": network, "optimiser": optimiser, "method": method}
    measured = {*range(0, run.options.steps, EVERY), run.options.steps}
    # Methods may wait for the device, or count, so that no update is captured there.
    for step in training(run, measure, stop=stop, measured=measured, variant=None, **state):
        loss = method.loss(x, y)
        optimiser.zero_grad()
        loss.backward(inputs=parameters)
        method.filter_gradients()
        optimiser.step()
        method.project_weights()


def held_at(m: dict[str, numpy.ndarray], target: float) -> int | None:
    """The first step from which the last measurements have all been at the target or above."""
    last = m["test_accuracy"][-HELD - 1 :]
    there = len(last) > HELD and (last >= target).all()
    return int(m["step"][-HELD - 1]) if there else None


def events(m: dict[str, numpy.ndarray], steps: int, target: float) -> dict[str, object]:
    """What a row of the leaderboard says of a run; with fewer steps and not held it diverged."""
    updates, held = int(m["step"][-1]), held_at(m, target)
    return {
        "target": target,
        "memorised_at": first_step(m, "train_accuracy", MEMORISED),
        "reached_at": first_step(m, "test_accuracy", numpy.nextafter(target, 0)),
        "held_at": held,
        "best_test_accuracy": round(float(m["test_accuracy"].max()), 4),
        "last_test_accuracy": round(float(m["test_accuracy"][-1]), 4),
        "updates": updates,
        "diverged": held is None and updates < steps,
    }


@script
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    settings = settings_of(o)
    task = TASKS[o.task](o.seed, o.data_dir).to(o.torch_device(), o.torch_dtype())
    method = METHODS[o.method](task, settings)
    run = Run("accelerate", o)
    if not run.finished:
        try:
            train(run, task, method, settings["lr"], settings["weight_decay"])
        except TrainingError:  # which is a result like others, and final
            if not run.rows:
                raise
            run.save(int(run.rows[-1]["step"]), run.seconds, {}, finished=True)
    run.store({**settings, **events(run.metrics(), o.steps, task.target)})
    came = {key: run.results()[key] for key in ("memorised_at", "held_at")}
    drawing = metric_panels({"": run.metrics()}, PANELS, run.begun_by, events=came)
    level(drawing.axes[0], task.target, "target")
    run.save_figure(drawing)
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
