"""Figures that read the same everywhere: one style, log-scaled steps, the command beneath."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe and Ito's palette, told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
SEQUENTIAL = "viridis"
WIDEST = 3  # panels of a row, so that they can be read at a page's width; more go to further rows
# What the words of a column's name stand for in a legend.
WORDS = {
    "gini": "Gini coefficient:", "jacobian": "Jacobian", "max": "(largest)", "min": "(smallest)",
    "ntk": "kernel's", "pc1": "PC1", "rqi": "RQI,", "snr": "SNR", "jr": "λ_Jac",
}  # fmt: skip
STYLE = {
    "figure.dpi": 120,
    "font.size": 11,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def panels(columns: int, typed: str, rows: int = 1) -> tuple[Figure, Any]:
    """A figure of `rows` × `columns` panels with the line that made it beneath.

    Returns:
        the figure, and its axes as an array (columns,) or (rows, columns).
    """
    with matplotlib.rc_context(STYLE):
        # Figure, not pyplot: no display is needed and no state is left behind.
        figure = Figure(figsize=(4.6 * columns, 3.7 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        say_beneath(figure, typed)
    return figure, axes[0] if rows == 1 else axes


def metric_panels(
    runs: dict[str, dict[str, numpy.ndarray] | Sequence[dict[str, numpy.ndarray]]],
    contents: dict[str, tuple[str, ...]],
    typed: str,
    against: str = "step",
    events: dict[str, float | None] | None = None,
) -> Figure:
    """Columns of metrics.csv in rows of panels, for one run or several, one colour each.

    Args:
        runs: name -> columns, or those of each seed, a thinner line each; where there are several
            runs, their names stand above all panels.
        contents: label of a panel's vertical axis -> columns, one to four, in the line styles
            solid, dashed, dotted and dash-dotted; a run's line is left out where it lacks one.
        typed: the line beneath.
        against: column of the horizontal axis; any but the step is drawn as points.
        events: what happened -> the step, None where it did not; named in the first panel.
    """
    groups = {name: [m] if isinstance(m, dict) else m for name, m in runs.items()}
    everything = [m for seeds in groups.values() for m in seeds]
    figure, axes = grid(len(contents), typed)
    colours = COLOURS if len(runs) <= len(COLOURS) else graded(len(runs))
    if len(runs) > 1:
        _name_above(figure, runs, colours)
    for axis, (label, wanted) in zip(axes, contents.items(), strict=False):
        names = [name for name in wanted if any(name in m for m in everything)]
        for colour, seeds in zip(colours, groups.values(), strict=False):
            for m, (style, name) in product(seeds, zip(LINES, names, strict=False)):
                if name not in m:
                    continue
                kind = {"ls": style} if against == "step" else {"ls": "", "marker": "o", "ms": 4}
                kind["lw"] = 2.0 if len(seeds) == 1 else 1.2
                there = numpy.isfinite(m[name])  # not every step may have been measured
                axis.plot(m[against][there], m[name][there], color=colour, **kind)
        if len(names) > 1:
            for style, name in zip(LINES, names, strict=False):
                axis.plot([], [], color="#666666", ls=style, label=in_words(name))
        mark(axis, events or {}, named=axis is axes[0])
        legend(axis)
        if _wide(numpy.concatenate([m[n] for m in everything for n in names if n in m])):
            axis.set_yscale("log")
        axis.set_ylabel(label)
        if against == "step":
            step_axis(axis, max(m["step"][-1] for m in everything))
        else:
            axis.set_xlabel(in_words(against))
    return figure


def _label(run: str, room: int) -> str:
    """A run's name in lines of so many characters, as it is: no mathematics, and not hidden."""
    words = run.replace(",", ", ").replace("$", r"\$")
    return textwrap.fill(f" {words}" if run.startswith("_") else words, room)


def _name_above(figure: Figure, runs: Iterable[str], colours: Sequence[Any]) -> None:
    """The runs' colours and names above all panels, for which the figure grows."""
    room = int(12 * figure.get_figwidth())  # characters
    labels = [_label(run, room) for run in runs]
    columns = max(1, room // (max(map(len, labels)) + 8))
    handles = [Line2D([], [], color=c, lw=2) for c, _ in zip(colours, runs, strict=False)]
    place = {"loc": "outside upper left", "ncols": columns, "frameon": False}
    above = figure.legend(handles, labels, **place)
    figure.set_figheight(figure.get_figheight() + above.get_window_extent().height / figure.dpi)


def legend(axes: Axes, title: str | None = None) -> None:
    """What a panel's lines are, if they have names, above it, where it covers no curve.

    The figure grows, so that the panels of the row keep their height.
    """
    if not axes.get_legend_handles_labels()[0]:
        return
    figure, row = axes.figure, axes.get_subplotspec().rowspan
    specs = {a: a.get_subplotspec() for a in figure.axes}  # a colour bar has none
    beside = [a for a, spec in specs.items() if spec and spec.rowspan == row]

    def tallest() -> float:
        found = (a.get_legend() for a in beside)
        return max((one.get_window_extent().height for one in found if one), default=0.0)

    before = tallest()
    room = figure.get_figwidth() / axes.get_gridspec().ncols - 0.6  # inches, without the labels
    for columns in (3, 2, 1):
        drawn = axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, title=title,
            alignment="left", borderpad=0.2, borderaxespad=0.3, labelspacing=0.3,
            handletextpad=0.5, columnspacing=1.0,
        )  # fmt: skip
        if drawn.get_window_extent().width < room * figure.dpi:
            break
    figure.set_figheight(figure.get_figheight() + (tallest() - before) / figure.dpi)


def grid(number: int, typed: str) -> tuple[Figure, numpy.ndarray]:
    """A figure of so many panels, `WIDEST` in a row at most, and its axes (number,)."""
    columns = min(number, WIDEST) if number != WIDEST + 1 else 2
    figure, axes = panels(columns, typed, rows=-(-number // columns))
    axes = numpy.ravel(axes)
    for unused in axes[number:]:
        unused.set_visible(False)
    return figure, axes[:number]


def in_words(column: str) -> str:
    """A column's name as a legend has it: `test accuracy`, `Gini coefficient: logit map`."""
    return " ".join(WORDS.get(word, word) for word in column.removesuffix("_at").split("_"))


def mark(axes: Axes, events: dict[str, float | None], named: bool = True) -> None:
    """A vertical line, in a style of its own, at each event that came; its name in the legend."""
    for style, (name, step) in zip((":", "-.", "--", "-"), events.items(), strict=False):
        if step is not None:
            label = f"{in_words(name)} at step {step:,.0f}" if named else None
            axes.axvline(step, color="#888888", lw=1.2, ls=style, zorder=0, label=label)


def level(axes: Axes, value: float | None, name: str) -> None:
    """A horizontal line at a value that matters, if there is one, named in the legend."""
    if value is not None:
        axes.axhline(value, color="#888888", lw=1.2, ls="--", zorder=0, label=f"{name} {value:.3g}")
        legend(axes)


def say_beneath(figure: Figure, typed: str) -> None:
    """Writes a line beneath a figure, in place of one there; after another width, say it again."""
    lines = textwrap.wrap(typed, int(13 * figure.get_figwidth()))
    figure.set_figheight(figure.get_figheight() + 0.16 * max(0, len(lines) - 2))
    style = {"fontsize": 9, "family": "monospace", "color": "#444444"}
    figure.supxlabel("\n".join(lines), **style, parse_math=False)  # a $ in a folder's name is a $


def _wide(values: numpy.ndarray) -> bool:
    """Whether a logarithmic axis serves them: positive, over 100 times apart, and no shares."""
    values = values[numpy.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() > max(1.0, 100 * values.min()))


def step_axis(axes: Axes, last: float) -> None:
    """Log-scaled steps with a place for step 0."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    axes.set_xlim(-0.05, max(last, 1) * 1.15)
    axes.set_xlabel("step")


def curves(m: dict[str, numpy.ndarray], lines: Any, against: str = "step") -> None:
    """Columns of metrics.csv as lines, each (axes, column, label, colour, line style)."""
    for axes, column, label, colour, style in lines:
        axes.plot(m[against], m[column], color=colour, ls=style, label=label)


def coloured_line(
    axes: Axes, x: Any, y: Any, colour: Any, colour_name: str,
    limits: tuple[float | None, float | None] = (None, None),
) -> None:  # fmt: skip
    """A line whose markers carry a third quantity in their colour, with its colour bar.

    `limits` are the ends of the colours, the data's by default; beyond them the bar has a point.
    """
    axes.plot(x, y, color="#999999", linewidth=1.2, zorder=1)
    low, high = limits
    points = axes.scatter(x, y, c=colour, cmap=SEQUENTIAL, vmin=low, vmax=high, s=34, zorder=2)
    beyond = high is not None and numpy.max(colour) > high
    axes.figure.colorbar(points, ax=axes, label=colour_name, extend="max" if beyond else "neither")


def graded(number: int) -> list[Any]:
    """So many colours, in the order of a sequential map."""
    return list(matplotlib.colormaps[SEQUENTIAL](numpy.linspace(0, 0.9, number)))


def graded_lines(axes: Axes, x: Any, lines: dict[str, Any]) -> None:
    """Lines of one family, by name, in graded colours."""
    for colour, (name, y) in zip(graded(len(lines)), lines.items(), strict=True):
        axes.plot(x, y, color=colour, label=name)
