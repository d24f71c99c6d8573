"""Figure 6: training images and their centroids, from finished runs of delayed_robustness.py."""

from __future__ import annotations

from pathlib import Path

import torch

from lab.bench import plots
from lab.bench.checkpoints import finished_checkpoint, restore
from lab.bench.errors import UserError
from lab.bench.files import read_config, run_folder, short_names, write_figure
from lab.data import cifar
from lab.data.cifar import CLASSES, CifarOptions
from lab.fast.convolutions import convolutional_network
from lab.networks.mlp import Normalisation
from lab.reports import Request
from lab.reports.figure_5 import label
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
    path = above / f"{request.name or 'figure_6'}.png"
    write_figure(path, plots.image_rows(rows, captions, request.typed))
    print(path)


def trained(folder: Path) -> torch.nn.Sequential:
    """The network of a finished run at its end, float32 on the CPU."""
    config = read_config(folder)
    if "filters" not in config:
        raise UserError(f"figure_6 takes finished runs of {SCRIPT}; {folder} is none")
    network = convolutional_network(config["filters"], CLASSES, torch.Generator())
    state = finished_checkpoint(folder)["state"]
    restore(folder / "checkpoint.pt", state, {"network": network}, finished=True)
    return network
