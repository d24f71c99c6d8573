"""Figure 10: alignment by the scale of weights and output, from comparison_to_ntk's runs.

Of runs that differ in `init_scale`, `output_scale` and `seed` alone; words such as `width=8` choose
others. A run of older code that trained the whole grid at once is read as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from lab.bench import plots
from lab.bench.files import is_finished, read_config, read_metrics
from lab.bench.statistics import Row, markdown
from lab.reports import Request
from lab.reports._values import signed
from lab.reports._words import none_there, options_in, save

SCRIPT = "comparison_to_ntk"
FREE = ("init_scale", "output_scale", "seed")
BEGUN = ("rate", "reciprocal_norm", "reciprocal_norm_official")  # results of the initial network
Values = dict[str, numpy.ndarray]


def report(request: Request) -> None:
    """Draws the two panels, and prints the tables.

    Raises:
        UserError: if there is no finished run, or a word is no option.
    """
    for name, rows in tables(request).items():
        print(f"{name}\n\n{markdown(rows)}\n")
    drawing = figure(chosen(request), request.typed)
    save(request, SCRIPT, ["figure_10", *request.words], drawing)


def tables(request: Request) -> dict[str, list[Row]]:
    """The largest alignments during training, and what they go with; raises as `report`."""
    value, given = chosen(request), options_in(request, request.script(SCRIPT).Options)
    depth = given.get("depth", request.script(SCRIPT).Options.depth)
    return {"largest_alignments": readings(value, depth), "correlations": correlations(value)}


def chosen(request: Request) -> Values:
    """Each quantity, of all networks that the words choose; raises as `report`."""
    options, folder = request.script(SCRIPT).Options, request.out_dir / SCRIPT
    wanted = {**options().identity(), **options_in(request, options)}
    found = networks(folder, {k: v for k, v in wanted.items() if k not in FREE})
    if not found:
        raise none_there(request, SCRIPT)
    return {key: numpy.array([network[key] for network in found]) for key in found[0]}


def networks(folder: Path, same: dict[str, Any]) -> list[dict[str, float]]:
    """The networks of all finished runs whose options are `same`, one a pair of scales and seed.

    Each has its `FREE` options, what it had at the start (`BEGUN`), and `max_alignment`.
    """
    found: dict[tuple[float, ...], dict[str, float]] = {}
    for path in sorted(folder.glob("*/config.yaml")):
        config = read_config(path.parent)
        if not is_finished(path.parent) or any(config.get(k) != v for k, v in same.items()):
            continue
        results = config.get("results", {})
        for each in results.get("networks", ()):  # the grid trained at once, by older code
            official = each["reciprocal_norm"] * each["output_scale"]
            key = tuple(each[name] for name in FREE)
            found.setdefault(key, {"reciprocal_norm_official": official, **each})
        if all(name in results for name in BEGUN):
            alignments = read_metrics(path.parent)["alignment_of_point"]
            key = tuple(config[name] for name in FREE)
            found[key] = dict(zip(FREE, key, strict=True)) | {name: results[name] for name in BEGUN}
            found[key]["max_alignment"] = float(alignments.max())
    return [found[key] for key in sorted(found)]


def readings(value: Values, depth: int) -> list[Row]:
    """The largest alignment, mean and range, by ways to compare output and weights.

    A factor on the output changes nothing in the official norm, which leaves it out, so that the
    first column is what it does at an equal official norm. With the second, it is compared at an
    equal factor. A factor on the weights acts in each of the `depth` layers, so that its root, in
    the third, has the effect on our norm that the factor on the output has: an equal scaled norm.
    The fourth has the factor on both.
    """

    def alignments(weights: float, output: float) -> str:
        some = numpy.isclose(value["init_scale"], weights) & (value["output_scale"] == output)
        found = value["max_alignment"][some]
        return f"{found.mean():.2f} ({found.min():.2f}–{found.max():.2f})" if some.any() else "–"

    rows = []
    for factor in sorted({*value["output_scale"], *value["init_scale"]}):
        rows.append(
            {
                "factor": f"{factor:g}",
                "on the output, official norm unchanged": alignments(1, factor),
                "on the weights": alignments(factor, 1),
                "its root on the weights, scaled norm as with the output": alignments(
                    factor ** (1 / depth), 1
                ),
                "on both": alignments(factor, factor),
            }
        )
    return rows


def correlations(value: Values) -> list[Row]:
    """Of the largest alignment with the logarithms of what is known at the start.

    That is the mean of 1 / ‖μ‖, and the first rate of change, with which the norm goes together:
    hence the partial correlations at an equal rate and at an equal (scaled) norm.
    """
    logs = {name: numpy.log(abs(value[name])) for name in BEGUN}
    labels = {"reciprocal_norm": "scaled", "reciprocal_norm_official": "official", "rate": "rate"}
    largest, rate, norm = value["max_alignment"], logs["rate"], logs["reciprocal_norm"]
    return [
        {
            "norm": label,
            "correlation": correlation(logs[name], largest),
            "at an equal rate": correlation(logs[name], largest, rate),
            "at an equal norm": correlation(logs[name], largest, norm),
            "correlation with the rate": correlation(logs[name], rate),
            "networks": str(len(largest)),
        }
        for name, label in labels.items()
    ]


def correlation(
    one: numpy.ndarray, other: numpy.ndarray, given: numpy.ndarray | None = None
) -> str:
    """Pearson's, or a partial one: of what is left when each is fitted by a given third."""
    if len(one) < 4 or given is one:
        return "–"
    if given is not None:
        beside = numpy.stack([given, numpy.ones_like(given)], axis=1)
        one, other = (y - beside @ numpy.linalg.lstsq(beside, y)[0] for y in (one, other))
    return signed(f"{numpy.corrcoef(one, other)[0, 1]:.3f}")


def figure(value: Values, typed: str) -> Figure:
    """Norm against rate, coloured by the largest alignment; the largest alignment by scale."""
    drawing, (left, right) = plots.panels(2, typed)
    norm = Normalize(value["max_alignment"].min(), value["max_alignment"].max())
    for marker, label, some in (
        ("o", "rises", value["rate"] > 0),
        ("v", "falls", value["rate"] <= 0),
    ):
        points = left.scatter(
            abs(value["rate"][some]), value["reciprocal_norm"][some],
            c=value["max_alignment"][some], cmap=plots.SEQUENTIAL, norm=norm, marker=marker,
            label=label,
        )  # fmt: skip
    left.set(
        xscale="log",
        yscale="log",
        xlabel="size of the first change of ⟨x, μ⟩ (Theorem 9)",
        ylabel="mean of 1 / ‖μ‖",
    )
    left.legend(title="⟨x, μ⟩ at first", loc="lower left")
    drawing.colorbar(points, ax=left, label="largest alignment during training")
    ticks = sorted({*value["output_scale"], *value["init_scale"]})
    for colour, scaled, other, label in zip(
        plots.COLOURS, ("init", "output"), ("output", "init"), ("weights", "output"), strict=False
    ):
        unscaled = value[f"{other}_scale"] == 1
        scales = sorted({*value[f"{scaled}_scale"][unscaled]})
        groups = [
            value["max_alignment"][unscaled & (value[f"{scaled}_scale"] == scale)]
            for scale in scales
        ]
        right.errorbar(
            scales, [g.mean() for g in groups],
            [[g.mean() - g.min() for g in groups], [g.max() - g.mean() for g in groups]],
            marker="o", capsize=3, color=colour, label=f"{label} scaled",
        )  # fmt: skip
    right.set(xscale="log", xlabel="scale", ylabel="largest alignment (mean and range)")
    right.set_xticks(ticks, [f"{scale:g}" for scale in ticks])
    right.minorticks_off()
    right.legend()
    return drawing
