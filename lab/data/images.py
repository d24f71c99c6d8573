"""Small image sets, read once, normalised, flattened and put on the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lab.bench.errors import UserError, reason
from lab.bench.options import option
from lab.bench.shared import Shared
from lab.data.downloads import download

# Mean and standard deviation of the training pixels in [0, 1].
STATISTICS = {"mnist": (0.1307, 0.3081), "fashion_mnist": (0.2860, 0.3530)}
FILES = (
    ("train", "images-idx3"),
    ("train", "labels-idx1"),
    ("t10k", "images-idx3"),
    ("t10k", "labels-idx1"),
)
CLASSES = 10
PROJECTIONS = (*map(str, range(1, CLASSES + 1)), "exact")  # of the Jacobian of ten scores
DIGITS_TRAIN = 1024  # of the 1,797 digits; the others are the test set


@dataclass
class ImageOptions(Shared):
    """The options of every script that trains on MNIST or its stand-ins."""

    dataset: str = option(
        "mnist",
        "images: mnist, fashion_mnist, or digits, scikit-learn's 1,797 of 8 × 8 pixels, which "
        "need no download",
        choices=("mnist", "fashion_mnist", "digits"),
    )
    data_dir: str = option(
        "data", "folder of the images, downloaded into it when they are not there", names_run=False
    )
    points: int = option(
        1024, "first points of each split, training and test, or as many as it has", least=2
    )


class Images(NamedTuple):
    """Training and test images as rows, with their classes."""

    x: Tensor
    """(N, D), normalised."""
    y: Tensor
    """(N,), int64."""
    x_test: Tensor
    """(M, D)."""
    y_test: Tensor
    """(M,)."""


def load(o: ImageOptions, classes: tuple[int, ...] | None = None) -> Images:
    """The first `o.points` images of each split, on the device and in the precision of `o`.

    Args:
        o: the options.
        classes: with classes given, the first `o.points` of these alone, in equal shares and in
            the order of the set.

    Raises:
        UserError: if the set cannot be downloaded, or its files are not what they should be.
    """
    place = {"device": o.torch_device(), "dtype": o.torch_dtype()}
    tensors: list[Tensor] = []
    for pixels, labels in _digits() if o.dataset == "digits" else _idx(o):
        if classes is None:
            chosen = torch.arange(min(o.points, len(labels)))
        else:
            share = o.points // len(classes)
            chosen = torch.cat([(labels == c).nonzero()[:share, 0] for c in classes]).sort().values
        tensors += [pixels[chosen].flatten(1).to(**place), labels[chosen].to(place["device"])]
    return Images(*tensors)


def _idx(o: ImageOptions) -> list[tuple[Tensor, Tensor]]:
    """Both splits of a torchvision set: normalised pixels (N, 28, 28), float64, and labels."""
    from torchvision import datasets  # slow to import, and the digits do without

    kind = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[o.dataset]
    mean, deviation = STATISTICS[o.dataset]
    raw = Path(o.data_dir) / kind.__name__ / "raw"
    if not all((raw / f"{split}-{what}-ubyte").exists() for split, what in FILES):
        otherwise = (
            f"--data_dir, {o.data_dir} here, takes a folder that holds it already, and "
            "scikit-learn's digits need no download"
        )
        download(o.dataset, raw, lambda: kind(o.data_dir, download=True), otherwise)
    splits = []
    for train in (True, False):
        try:
            images = kind(o.data_dir, train=train)
        except (RuntimeError, OSError, ValueError, TypeError, LookupError, AssertionError) as error:
            raise UserError(_damaged(o, f"{type(error).__name__}: {reason(error)}")) from None
        pixels, labels = images.data, images.targets
        if pixels.shape[1:] != (28, 28) or len(pixels) != len(labels):
            raise UserError(_damaged(o, f"{tuple(pixels.shape)} pixels, {len(labels)} labels"))
        if len(labels) == 0 or labels.max() > 9:
            raise UserError(_damaged(o, "a label is not in 0 to 9"))
        splits.append(((pixels.double() / 255 - mean) / deviation, labels))
    return splits


def _damaged(o: ImageOptions, what: str) -> str:
    return (
        f"the {o.dataset} files in --data_dir {o.data_dir} are damaged or not {o.dataset} "
        f"({what}); remove them and they are downloaded again"
    )


def _digits() -> list[tuple[Tensor, Tensor]]:
    """scikit-learn's digits: pixels (N, 8, 8) to mean 0 and standard deviation 1, and labels."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    pixels = torch.from_numpy(bundle.images).double()
    labels = torch.from_numpy(bundle.target).long()
    training = pixels[:DIGITS_TRAIN]
    pixels = (pixels - training.mean()) / training.std()
    return [
        (pixels[:DIGITS_TRAIN], labels[:DIGITS_TRAIN]),
        (pixels[DIGITS_TRAIN:], labels[DIGITS_TRAIN:]),
    ]
