"""CIFAR-10: the first images of each split, as raw pixels on the device."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from lab.bench.errors import UserError
from lab.bench.files import replace
from lab.bench.options import option
from lab.bench.shared import Shared
from lab.data.downloads import download

CLASSES = 10
# Mean and standard deviation of the training pixels in [0, 1], for red, green and blue.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass
class CifarOptions(Shared):
    """The options of every script that trains on CIFAR-10."""

    data_dir: str = option(
        "data",
        "folder of CIFAR-10, downloaded into it when not there; cifar10-N.npz in it will do, of N "
        "points or more",
        names_run=False,
    )
    points: int = option(
        1024, "first points of each split, training and test", least=1, most=10_000
    )


class Cifar(NamedTuple):
    """Training and test images, raw, with their classes."""

    x: Tensor
    """(N, 3, 32, 32) in [0, 1]."""
    y: Tensor
    """(N,), int64."""
    x_test: Tensor
    """(N, 3, 32, 32)."""
    y_test: Tensor
    """(N,)."""


def load(o: CifarOptions) -> Cifar:
    """The first `o.points` images of each split, on the device and in the precision of `o`.

    They are kept as `cifar10-<points>.npz` in `o.data_dir`, so that the next start takes a second
    and a machine without the network can be given that one file: `x_train` and `x_test`, uint8
    (N, 32, 32, 3), `y_train` and `y_test`, int64 (N,). One of more points serves as well, the
    smallest that there is.

    Raises:
        UserError: if the set cannot be downloaded, or a file is not what it should be.
    """
    there = _files(o)
    held = min((count for count in there if count >= o.points), default=o.points)
    path = Path(o.data_dir) / f"cifar10-{held}.npz"
    if held not in there:
        arrays = _downloaded(o)
        replace(path, lambda file: numpy.savez(file, **arrays))
    arrays = _read(path, held)
    tensors = []
    for name in ARRAYS:
        values = torch.from_numpy(arrays[name][: o.points]).to(o.torch_device())
        if values.ndim == 4:
            values = (values.to(o.torch_dtype()) / 255).permute(0, 3, 1, 2).contiguous()
        tensors.append(values)
    return Cifar(*tensors)


def _files(o: CifarOptions) -> list[int]:
    """Numbers of points, ascending, of which the folder has a cifar10-N.npz."""
    found = (re.fullmatch(r"cifar10-([1-9]\d*)\.npz", p.name) for p in Path(o.data_dir).glob("*"))
    return sorted(int(match[1]) for match in found if match)


def _read(path: Path, points: int) -> dict[str, numpy.ndarray]:
    try:
        with numpy.load(path) as file:
            arrays = {name: file[name] for name in ARRAYS}
    except Exception as error:  # whatever a damaged file may lead to
        what = f"has no array {error.args[0]!r}" if isinstance(error, KeyError) else "is damaged"
        raise UserError(f"{path} {what}; remove it and it is made again") from None
    for name, values in arrays.items():
        shape, kind = (points,), "int64"
        if name.startswith("x"):
            shape, kind = (points, 32, 32, 3), "uint8"
        if values.shape != shape or values.dtype != kind:
            raise UserError(
                f"{path}: {name} should be {kind} of shape {shape}, but is {values.dtype} of "
                f"shape {values.shape}"
            )
        if kind == "int64" and not ((values >= 0) & (values < CLASSES)).all():
            raise UserError(
                f"{path}: {name} has a label outside 0 to {CLASSES - 1}, between "
                f"{values.min()} and {values.max()}"
            )
    return arrays


def _downloaded(o: CifarOptions) -> dict[str, numpy.ndarray]:
    from torchvision.datasets import CIFAR10  # slow to import, and the npz does without

    few = f", cifar10-{there[-1]}.npz there has too few" if (there := _files(o)) else ""
    otherwise = (
        f"--data_dir, {o.data_dir} here, takes a folder that holds it, or cifar10-N.npz with N of "
        f"{o.points} or more{few}"
    )
    arrays = {}
    for split in ("train", "test"):
        images = download(
            "CIFAR-10",
            Path(o.data_dir),
            partial(CIFAR10, o.data_dir, split == "train", download=True),
            otherwise,
        )
        arrays[f"x_{split}"] = images.data[: o.points]
        arrays[f"y_{split}"] = numpy.array(images.targets[: o.points])
    return arrays
