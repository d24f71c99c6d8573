"""Every script on a device that is not the CPU, pretended: see pretended_cuda.py."""

import errno
import fcntl
import importlib
import re
from pathlib import Path
from unittest import mock

import numpy
import pytest
import torch
import yaml
from pretended_cuda import CPU, Pretended, tensors_in, unsupported

import helpers
from lab.bench.errors import UserError
from lab.bench.files import read_metrics
from lab.bench.runs import Run
from lab.bench.shared import Shared
from lab.measures import attacks

WHY = unsupported()
pytestmark = [
    pytest.mark.skipif(WHY is not None, reason=f"no device can be pretended: {WHY}"),
    pytest.mark.filterwarnings("ignore:no point is classified correctly"),
]

# Script -> more options than its line in the Makefile has, and how often an update may wait.
CASES = {
    "xor_grokking": ("", 0),
    "comparison_to_ntk": ("", 0),
    "jacobian_rank": ("--batch_size 25", 0),
    "accelerating_grokking": ("--batch_size 25", 0),
    "inhibiting_generalisation": ("--batch_size 25", 0),
    "linear_regions": ("--batch_size 25", 0),
    "modular_addition": ("--warmup 3", 0),
    "spectral_shift": ("", 0),
    "norm_minimisation": ("", 3),
    "circuit_efficiency": ("--longest 0.2", 300),
    "sparse_parity": ("--jr 0.1", 0),
    "sequence_copying": ("--batch 4", 0),
    "order_parameters": ("", 0),
    "delayed_robustness": ("--batch_size 5", 0),
    "accelerate": ("", 0),
}
FLOAT64 = ("norm_minimisation", "circuit_efficiency")  # alone
SMOKE = re.findall(
    r"^\t\$\(PYTHON\) (\w+)\.py (.*)\$\(TINY\) (\d+)$",
    (helpers.ROOT / "Makefile").read_text(),
    re.M,
)


def words(script, *more):
    """The script's line of `make smoke`, of few measurements, with its images in `images`."""
    (line,) = [f"{line} --steps {steps}" for name, line, steps in SMOKE if name == script]
    helpers.write_cifar(Path("images"))
    line = f"{line} --num_logs 4 {CASES[script][0]}".replace("$(IMAGES)", "images")
    return [*line.split(), *map(str, more)]


class Short(attacks.AutoAttack):
    """The attack with two steps instead of a hundred."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.apgd.n_iter, self.apgd.n_restarts = 2, 1


def undrawn(training):
    """Training after which the script ends, code 130, without the seconds of its figure."""

    def ending(*args, **others):
        yield from training(*args, **others)
        raise KeyboardInterrupt

    return ending


def metrics_of(folder):
    (path,) = Path(folder).glob("*/*/metrics.csv")
    return read_metrics(path.parent)


def test_every_script_is_driven():
    assert {name for name, *_ in SMOKE if name != "sweep"} == set(CASES)


@pytest.mark.parametrize("script", CASES)
def test_a_run_on_cuda_is_the_run_on_the_cpu(script, monkeypatch):
    """From measurement to figure, interrupted and continued; and its update does not wait."""
    module = importlib.import_module(script)
    training, save, waits = module.training, torch.save, []
    monkeypatch.setattr(attacks, "AutoAttack", Short)

    def watched(run, measure, **others):
        def interrupted(step):
            if step >= 2 and code == 130:
                raise KeyboardInterrupt
            return measure(step)

        for i, step in enumerate(training(run, interrupted, **others)):
            before = device.waits.total()
            yield step
            if i > 0:  # at its first call the regulariser looks whether points are coupled
                waits.append(device.waits.total() - before)

    def save_from_cpu(content, file):
        assert {tensor.device for tensor in tensors_in(content)} <= {CPU}
        save(content, file)

    monkeypatch.setattr(module, "training", undrawn(training))
    assert module.main(words(script, "--device", "cpu", "--out_dir", "cpu")) == 130
    monkeypatch.setattr(module, "training", watched)
    monkeypatch.setattr(torch, "save", save_from_cpu)
    with Pretended() as device:
        for code in (130, 0):
            every = 0 if code else 30
            more = ("--device", "cuda", "--out_dir", "cuda", "--checkpoint_every", every)
            assert module.main(words(script, *more)) == code
    assert max(waits) <= CASES[script][1]
    assert not [place for place in device.waits if place.startswith("lab/networks/")]
    (figure,) = Path("cuda").glob("*/*/figure.png")
    assert figure.stat().st_size > 10_000
    ours, theirs = metrics_of("cuda"), metrics_of("cpu")
    assert set(ours) == set(theirs)
    for column, values in ours.items():
        numpy.testing.assert_allclose(values, theirs[column], rtol=1e-4, err_msg=column)


@pytest.mark.parametrize("script", [script for script in CASES if script not in FLOAT64])
def test_an_apple_gpu_is_not_asked_for_float64(script, monkeypatch):
    module = importlib.import_module(script)
    monkeypatch.setattr(attacks, "AutoAttack", Short)
    monkeypatch.setattr(module, "training", undrawn(module.training))
    with Pretended("mps"):
        more = ("--device", "mps", "--dtype", "float32", "--steps", 1)
        assert module.main(words(script, *more)) == 130


# What a machine lacks


def provenance_of(run):
    return yaml.safe_load((run.folder / "config.yaml").read_text())["provenance"]


@pytest.mark.parametrize("asked", [True, False])
def test_float32_is_float32_unless_asked(asked):
    run = Run("toy", Shared(tf32=asked))
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    assert (matmul.allow_tf32, cudnn.allow_tf32, provenance_of(run)["tf32"]) == (asked,) * 3


def test_a_package_that_is_absent_is_recorded_so(monkeypatch):
    monkeypatch.setattr("lab.bench.provenance.PACKAGES", ("torch", "no-such-package"))
    assert provenance_of(Run("toy", Shared()))["packages"]["no-such-package"] == "absent"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_not_another_process(monkeypatch, capsys, number):
    monkeypatch.setattr(fcntl, "lockf", mock.Mock(side_effect=OSError(number, "refused")))
    Run("toy", Shared())
    assert capsys.readouterr().err.count("no locks here") == 1


@pytest.mark.parametrize(
    ("number", "says"), [(errno.EAGAIN, "another process"), (errno.EIO, "--out_dir takes a folder")]
)
def test_other_faults_of_a_lock_are_named(monkeypatch, number, says):
    monkeypatch.setattr(fcntl, "lockf", mock.Mock(side_effect=OSError(number, "refused")))
    with pytest.raises(UserError, match=says):
        Run("toy", Shared())
