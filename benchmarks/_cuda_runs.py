"""Runs that benchmarks/cuda.py makes in its own process: on random images, timed or interrupted."""

import contextlib
import importlib
import io
import shlex
from functools import partial
from pathlib import Path
from unittest import mock

import torch

from lab.bench.files import read_metrics
from lab.bench.seeds import generator
from lab.data import images
from lab.data.cifar import Cifar


def random_images(o, classes=range(10), shape=(784,), kind=images.Images):
    """As many points, of such a shape, as a data set would give."""
    draws, device, parts = generator(0, "images"), o.torch_device(), []
    for _ in range(2):
        parts += [torch.rand(o.points, *shape, generator=draws).to(device, o.torch_dtype())]
        parts += [torch.randint(len(classes), (o.points,), generator=draws).to(device)]
    return kind(*parts)


def run(script, options, folder, device, measured_by=None, code=0, **others):
    """Makes a run here; returns its folder.

    `measured_by` (measure, step) stands in for `measure`, `others` for what `training` is given.
    """
    module, said = importlib.import_module(script), io.StringIO()
    made_by, random_cifar = module.training, partial(random_images, shape=(3, 32, 32), kind=Cifar)

    def training(run, measure, **given):
        measure = measure if measured_by is None else partial(measured_by, measure)
        return made_by(run, measure, **{**given, **others})

    load = images.load if "digits" in options else random_images
    with (
        mock.patch("lab.data.cifar.load", random_cifar), mock.patch("lab.data.images.load", load),
        mock.patch.object(module, "training", training),
        contextlib.redirect_stdout(said), contextlib.redirect_stderr(said),
    ):  # fmt: skip
        line = f"{options} --device {device} --out_dir {folder} --name run --quiet"
        if module.main(shlex.split(line)) != code:
            raise SystemExit(f"{script} {line}\n{said.getvalue()}")
    return Path(folder) / script / "run"


def found(folder):
    """Metrics of a run, and the numbers that it trains, (n,) in float64."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    parts = [v for name in ("network", "flow") for v in state.get(name, {}).values()]
    parts = [v.double().flatten() for v in parts if torch.is_tensor(v) and v.is_floating_point()]
    return read_metrics(folder), torch.cat(parts or [torch.zeros(1).double()]).numpy()


def apart(a, b):
    """The largest difference, relative to the largest size."""
    return float(abs(a - b).max() / max(abs(b).max(), 1e-300))
