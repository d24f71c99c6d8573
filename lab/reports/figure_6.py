"""Figure 6: training images and their centroids, from finished runs of delayed_robustness.py."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

from lab.bench import plots
from lab.bench.checkpoints import finished_checkpoint, restore
from lab.bench.errors import UserError
from lab.bench.files import read_config, run_folder, short_names
from lab.data import cifar
from lab.data.cifar import CLASSES, CifarOptions
from lab.fast.convolutions import convolutional_network
from lab.networks.mlp import Normalisation
from lab.reports import Request
from lab.reports._by_jr import label
from lab.reports._words import save
from utils import Centroids

SCRIPT = "delayed_robustness"
RUNS = ("default", "jr=0.001")  # when none are given
SHOWN = 8  # images


def report(request: Request) -> None:
    """Draws the first training images, and below them their centroids in each run.

    Runs are given as folders or by name; the images are those of `--data_dir`.

    Raises:
        UserError: if one is not there, not finished, not of this script, or has no checkpoint.
    """
    above = request.out_dir / SCRIPT
    folders = [run_folder(given, above) for given in request.words or RUNS]
    networks = [trained(folder) for folder in folders]
    names = [label(read_config(folder)["jr"]) for folder in folders]
    names = names if len({*names}) == len(names) else short_names(folders)
    points = max(read_config(folder)["points"] for folder in folders)
    raw = cifar.load(CifarOptions(points=points, data_dir=request.data_dir, device="cpu")).x[:SHOWN]
    rows, captions = {"training image": raw}, {}
    for name, network in zip(names, networks, strict=True):
        found = Centroids(network)(Normalisation(cifar.MEAN, cifar.STD)(raw))
        largest = found.centroids.abs().amax(dim=(1, 2, 3), keepdim=True)
        # Zero is mid-grey, and each centroid's largest entry, of either sign, is full scale.
        rows[name] = 0.5 + 0.5 * found.centroids / torch.where(largest > 0, largest, 1.0)
        captions[name] = [f"cosine {a:.2f}" for a in found.alignments]
    save(request, above.name, ["figure_6"], image_rows(rows, captions, request.typed))


def trained(folder: Path) -> torch.nn.Sequential:
    """The network of a finished run at its end, float32 on the CPU."""
    config = read_config(folder)
    if "filters" not in config:
        raise UserError(f"figure_6 takes finished runs of {SCRIPT}; {folder} is none")
    network = convolutional_network(config["filters"], CLASSES, torch.Generator())
    state = finished_checkpoint(folder)["state"]
    restore(folder / "checkpoint.pt", state, {"network": network})
    return network


def image_rows(rows: dict[str, Any], captions: dict[str, list[str]], typed: str) -> Figure:
    """Rows of images, named at their left, with the line that made them beneath.

    Args:
        rows: name -> (N, 3, H, W) colours in [0, 1], the same N in all.
        captions: a row's name -> N words, one above each image; rows may be left out.
        typed: the line beneath.
    """
    columns = len(next(iter(rows.values())))
    with matplotlib.rc_context({**plots.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.5 * columns, 1.75 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for line, (name, pictures) in zip(grid, rows.items(), strict=True):
            words = captions.get(name, [""] * columns)
            for axes, picture, caption in zip(line, pictures, words, strict=True):
                axes.imshow(picture.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
                axes.set_title(caption, fontsize=9)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            line[0].set_ylabel(textwrap.fill(name, 22), fontsize=9, parse_math=False)
        plots.say_beneath(figure, typed)
    return figure
