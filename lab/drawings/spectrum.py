"""The figure of spectral_shift.py, and the tables of its logits' dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lab.bench import plots
from lab.bench.files import write_text
from lab.bench.seeds import generator
from lab.measures import spectra


def spectrum_figure(
    m: dict[str, numpy.ndarray], found: dict[str, Any], kept: dict[str, Any], typed: str
) -> Figure:
    """Spectra before, when memorised and after, and the curves beneath.

    Args:
        m: columns of spectral_shift.py's metrics.
        found: steps of `memorised_at` and `grokked_at`, or None.
        kept: name -> {"step": …, "kept": …}: energies (p, p), and what the tables are made of.
        typed: the line beneath.
    """
    drawing, (maps, curves) = plots.panels(3, typed, rows=2)

    spectrum = {each["step"]: each["kept"] for each in kept.values() if each["kept"].ndim == 2}
    steps = numpy.array(sorted(spectrum))
    p = len(spectrum[0])
    last = int(steps[-1])
    memorised = found["memorised_at"]
    moments = {"before training": 0, "nearest to memorising": memorised, "after training": last}
    half = p // 2
    for axes, (moment, step) in zip(maps, moments.items(), strict=True):
        nearest = last if step is None else int(steps[abs(steps - step).argmin()])
        share = spectra.shares(spectrum[nearest]).numpy()
        image = axes.imshow(
            numpy.roll(share, (half, half), (0, 1)).clip(1e-6),
            norm=LogNorm(1e-6, 1e-1),
            cmap=plots.SEQUENTIAL,
            origin="lower",
            extent=2 * (-half - 0.5, p - half - 0.5),
            interpolation="nearest",
        )
        axes.set_title(f"{'never memorised' if step is None else moment}, step {nearest:,}")
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
        events = {event: found[event] for event in ("memorised_at", "grokked_at")}
        plots.mark(axes, events, named=axes is left)
        axes.set_ylim(0, 1.05 * axes.dataLim.y1)
        plots.legend(axes)
        plots.step_axis(axes, m["step"][-1])
    return drawing


def write_tables(folder: Path, kept: dict[str, Any], p: int, most: int, seed: int) -> None:
    """Writes `per_dim_step<step>.csv` for each kept moment: the low fractions of single classes.

    Args:
        folder: where they go.
        kept: as for `spectrum_figure`; "per_dim_step<step>" -> low fractions (p,).
        p: classes.
        most: classes in a table, the same ones, drawn at random, in all of them; 0 for no tables.
        seed: of that draw.
    """
    for old in folder.glob("per_dim_step*.csv"):
        old.unlink()
    if most == 0:
        return
    folder.mkdir(exist_ok=True)
    classes = torch.randperm(p, generator=generator(seed, "projections"))[:most].sort().values
    for name, moment in kept.items():
        if not name.startswith("per_dim_step"):
            continue
        values = moment["kept"][classes].tolist()
        rows = [f"{c},{v!r}\n" for c, v in zip(classes.tolist(), values, strict=True)]
        write_text(folder / f"{name}.csv", "".join(["dimension,low_fraction\n", *rows]))
