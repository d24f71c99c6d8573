"""The Laplacian penalty on the torus, against none, a permuted torus and the complete graph."""

from __future__ import annotations

import numpy
from matplotlib.figure import Figure

from lab.bench import plots
from lab.bench.statistics import finished_runs, markdown
from lab.measures.events import grokking_events
from lab.reports import Request
from lab.reports._words import none_there, options_in, save

SCRIPT = "spectral_shift"
Metrics = dict[str, numpy.ndarray]
CONTROLS = ("permuted_torus", "complete_graph")
FREE = ("laplacian_penalty", "penalty_form", *CONTROLS)


def report(request: Request) -> None:
    """Draws and prints all finished runs that differ in the penalty and the seed alone.

    Words such as `steps=400` or `seed=0` choose other runs or some of them, and
    `penalty_form=quotient` or `laplacian_penalty=0.1` some of those with a penalty.

    Raises:
        UserError: if there is none.
    """
    options, folder = request.script(SCRIPT).Options, request.out_dir / SCRIPT
    given = options_in(request, options)
    wanted = {"penalty_form": "mean"} | {name: given.pop(name) for name in FREE if name in given}
    curves: dict[str, list[Metrics]] = {}
    for key, runs in sorted(finished_runs(folder, options, FREE, **given).items()):
        o = dict(zip(FREE, key, strict=True))
        weight = o["laplacian_penalty"]
        if weight and any(o[name] != value for name, value in wanted.items()):
            continue
        graph = next((graph for graph in CONTROLS if o[graph]), "true_torus").replace("_", " ")
        name = f"{graph}, {weight:g}" if weight else "no penalty"
        curves[name] = [run.metrics for _, run in sorted(runs.items())]
    if not curves:
        raise none_there(request, SCRIPT)
    rows = []
    for name, of_seeds in curves.items():
        events = [grokking_events(m) for m in of_seeds]
        largest = [m["test_accuracy"].max() for m in of_seeds]
        rows.append(
            {
                "penalty": name,
                "seeds": str(len(of_seeds)),
                "grokked at": ", ".join(str(e["grokked_at"] or "never") for e in events),
                "largest test accuracy": ", ".join(f"{accuracy:.3f}" for accuracy in largest),
                "at the end": ", ".join(f"{m['test_accuracy'][-1]:.3f}" for m in of_seeds),
            }
        )
    print(markdown(rows))
    save(request, SCRIPT, ["penalty_ablation", *request.words], drawn(curves, request.typed))


def drawn(curves: dict[str, list[Metrics]], typed: str) -> Figure:
    """Steps of memorising and of grokking of each run, and the test accuracies."""
    drawing, (left, right) = plots.panels(2, typed)
    for i, (graph, runs) in enumerate(curves.items()):
        colour = plots.COLOURS[i]
        for k, m in enumerate(runs):
            found = grokking_events(m)
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
    left.set_xticks(range(len(curves)), [graph.replace(" ", "\n", 1) for graph in curves])
    left.set_yscale("log")
    left.set_ylabel(
        "step of memorisation (○), of grokking (●)\nor end without grokking (×)", fontsize=9
    )
    right.set_ylabel("test accuracy")
    plots.legend(right)
    plots.step_axis(right, max(m["step"][-1] for runs in curves.values() for m in runs))
    return drawing
