"""Figure 2: PC1 of the Jacobians by loss and regulariser, from jacobian_rank's runs.

Of finished runs that differ in `loss_fn`, `jr` and `seed` alone; words such as `steps=8000`,
`seed=0` or `weight_decay=0` choose others.
"""

from __future__ import annotations

from lab.bench import plots
from lab.bench.statistics import Finished, interval, markdown
from lab.reports import Request, _by_jr
from lab.reports._words import runs_in, save

SCRIPT = "jacobian_rank"


def report(request: Request) -> None:
    """Draws all of them in one figure, a line a seed, and prints PC1 at both ends.

    Raises:
        UserError: if there is no finished run, or a word is no option.
    """
    found = sorted(runs_in(request, SCRIPT, "loss_fn", "jr"), key=_order)
    drawing, axes = plots.panels(3, request.typed)
    rows = []
    for runs in found:
        rows.append({"run": label(runs[0]), "seeds": str(len(runs))})
        for row, when in ((0, "start"), (-1, "end")):
            values = [float(run.metrics["pc1"][row]) for run in runs]
            rows[-1][f"PC1, {when}, mean [95 %]"] = interval(values, ".3f")
        for i, run in enumerate(runs):
            line = {
                "color": plots.COLOURS[run.config["loss_fn"] != "MSE"],
                "ls": "-" if run.config["jr"] > 0 else "--",
                "label": label(run) if i == 0 else None,
            }
            for panel, column in zip(axes, ("pc1", "jacobian_norm", "test_accuracy"), strict=True):
                panel.plot(run.metrics["step"], run.metrics[column], **line)
    for panel in axes:
        plots.step_axis(panel, max(run.metrics["step"][-1] for runs in found for run in runs))
    axes[0].set(ylim=(0, 1), ylabel="mean PC1, σ₁² / Σσ²")
    axes[1].set(yscale="log", ylabel="‖J‖ (mean, Frobenius)")
    axes[2].set(ylim=(0, 1), ylabel="test accuracy")
    plots.legend(axes[0])
    print(f"{markdown(rows)}\n")
    save(request, SCRIPT, ["figure_2", *request.words], drawing)


def label(run: Finished) -> str:
    """The loss and what regularises, for the legend."""
    decay, jr = run.config["weight_decay"], run.config["jr"]
    terms = ["weight decay"] * (decay > 0) + [_by_jr.label(jr)] * (jr > 0)
    return f"{run.config['loss_fn']}, {' + '.join(terms) or 'no regularisation'}"


def _order(runs: list[Finished]) -> tuple[bool, float]:
    return runs[0].config["loss_fn"] != "MSE", runs[0].config["jr"]
