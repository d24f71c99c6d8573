"""Runs that benchmarks/cuda.py makes: in its process on random images, or several at a time."""

import contextlib
import importlib
import io
import os
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import torch

from lab.bench.files import read_metrics
from lab.bench.seeds import generator
from lab.bench.sweeps import ROOT
from lab.data import images
from lab.data.cifar import Cifar

SWEEP = (sys.executable, str(ROOT / "sweep.py"))
MPS = "nvidia-cuda-mps-control"
MANY = "sparse_parity.py --jr 0.1 --num_logs 2"  # what there are several of at a time


def random_images(o, classes=range(10), shape=(784,), kind=images.Images):
    """As many points, of such a shape, as a data set would give."""
    draws, device, parts = generator(0, "images"), o.torch_device(), []
    for _ in range(2):
        parts += [torch.rand(o.points, *shape, generator=draws).to(device, o.torch_dtype())]
        parts += [torch.randint(len(classes), (o.points,), generator=draws).to(device)]
    return kind(*parts)


def run(script, options, folder, device, measured_by=None, drawn=False, **others):
    """Makes a run here, to its end if it is to be drawn; returns its folder.

    `measured_by` (measure, step) stands in for `measure`, `others` for what `training` is given.
    """
    module, said = importlib.import_module(script), io.StringIO()
    made_by, random_cifar = module.training, partial(random_images, shape=(3, 32, 32), kind=Cifar)

    def training(run, measure, **given):
        measure = measure if measured_by is None else partial(measured_by, measure)
        yield from made_by(run, measure, **{**given, **others})
        if not drawn:  # its figure takes longer than all its updates
            raise KeyboardInterrupt

    load = images.load if "digits" in options else random_images
    with (
        mock.patch("lab.data.cifar.load", random_cifar), mock.patch("lab.data.images.load", load),
        mock.patch.object(module, "training", training),
        contextlib.redirect_stdout(said), contextlib.redirect_stderr(said),
    ):  # fmt: skip
        line = f"{options} --device {device} --out_dir {folder} --name run --quiet"
        if module.main(shlex.split(line)) != (0 if drawn else 130):
            raise SystemExit(f"{script} {line}\n{said.getvalue()}")
    return Path(folder) / script / "run"


def lost(measure, step):
    """A measurement that is interrupted after some updates, all of them saved."""
    if step >= 8:
        raise KeyboardInterrupt
    return measure(step)


def found(folder):
    """Metrics of a run, and the numbers that it trains, (n,) in float64."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    parts = [v for name in ("network", "flow") for v in state.get(name, {}).values()]
    parts = [v.double().flatten() for v in parts if torch.is_tensor(v) and v.is_floating_point()]
    return read_metrics(folder), torch.cat(parts or [torch.zeros(1).double()]).numpy()


def apart(a, b):
    """The largest difference, relative to the largest size."""
    return float(abs(a - b).max() / max(abs(b).max(), 1e-300))


def several(o, count, folder, shared):
    """Updates a second of as many processes at a time on one device, all together."""
    line = f"{MANY} --seed 0:{count} --steps {o.several_steps} --device {o.device} --quiet"
    words = f"{line} --out_dir {folder} --workers {count} --per_device {count}".split()
    with service(folder) if shared else contextlib.nullcontext():
        done = subprocess.run([*SWEEP, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    paths = list(Path(folder).glob("*/*/checkpoint.pt"))
    seconds = [torch.load(path, weights_only=True)["seconds"] for path in paths]
    yield {"updates_per_s": sum(o.several_steps / each for each in seconds), "right": True}


@contextlib.contextmanager
def service(folder):
    """NVIDIA's multi-process service, under which the kernels of several processes overlap."""
    names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
    places = {name: f"{folder}/{name.lower()}" for name in names}
    for place in places.values():
        Path(place).mkdir(parents=True)
    with mock.patch.dict(os.environ, places):
        subprocess.run([MPS, "-d"], stdin=subprocess.DEVNULL, check=True)
        try:
            yield
        finally:
            subprocess.run([MPS], input="quit", text=True, check=True, stdout=subprocess.DEVNULL)
