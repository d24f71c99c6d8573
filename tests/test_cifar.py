"""CIFAR-10: what is read from its one file, and what is said of a bad one."""

import errno
import io
import os
from pathlib import Path

import numpy
import pytest
import torch

from helpers import write_cifar
from lab.bench.errors import UserError, WriteError
from lab.data import cifar
from lab.data.cifar import CifarOptions
from lab.networks.mlp import Normalisation


@pytest.fixture
def path(tmp_path):
    return write_cifar(tmp_path / "data", 12)


def options(**others):
    return CifarOptions(points=12, device="cpu", **others)


def changed(path, **arrays):
    with numpy.load(path) as file:
        numpy.savez(path, **{**file, **arrays})


def test_pixels_and_labels(path):
    with numpy.load(path) as file:
        pixels, labels = file["x_test"], file["y_test"]
    found = cifar.load(options(dtype="float64"))
    assert found.x.shape == found.x_test.shape == (12, 3, 32, 32)
    assert found.x_test[5, 2, 7, 31].item() == pixels[5, 7, 31, 2] / 255
    assert found.y_test.tolist() == labels.tolist()
    assert found.y.dtype == torch.int64
    assert cifar.load(options()).x.dtype == torch.float32


def test_normalised_channel_by_channel():
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    z = Normalisation(cifar.MEAN, cifar.STD)(x)
    torch.testing.assert_close(z[:, 1], (x[:, 1] - 0.4822) / 0.2435)
    torch.testing.assert_close(Normalisation(0.5, 0.25)(x.flatten(1)), 4 * x.flatten(1) - 2)


def test_downloaded_once(path, monkeypatch, tmp_path):
    with numpy.load(path) as file:
        arrays = dict(file)
    calls = []

    class Download:
        def __init__(self, root, train, download):
            calls.append((root, train, download))
            split = "train" if train else "test"
            self.data = numpy.concatenate([arrays[f"x_{split}"]] * 2)
            self.targets = [*arrays[f"y_{split}"].tolist(), *[0] * 5]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Download)
    expected = cifar.load(options())
    assert calls == []
    path.unlink()
    for _ in range(2):
        for found, wanted in zip(cifar.load(options()), expected, strict=True):
            assert torch.equal(found, wanted)
    assert calls == [("data", True, True), ("data", False, True)]
    assert [p.name for p in path.parent.iterdir()] == ["cifar10-12.npz"]


def no_network(root, *_, **__):
    Path(root).mkdir(exist_ok=True)  # as torchvision does first
    raise OSError("<urlopen error no route>")


def test_the_first_points_of_the_smallest_file_that_has_enough(path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CIFAR10", no_network)
    whole = cifar.load(options())
    (path.parent / "cifar10-100.npz").write_bytes(b"the next larger one is read first")
    (path.parent / "cifar10-3.npz").write_bytes(b"too few points")
    (path.parent / "cifar10-5.tmp.npz").write_bytes(b"left by a killed process")
    first = cifar.load(CifarOptions(points=4, device="cpu"))
    for found, wanted in zip(first, whole, strict=True):
        assert torch.equal(found, wanted[:4])
    assert len(list(path.parent.iterdir())) == 4


def test_a_full_disk_leaves_nothing_half_written(path, monkeypatch):
    with numpy.load(path) as file:
        arrays = dict(file)
    path.unlink()
    monkeypatch.setattr(cifar, "_downloaded", lambda o: arrays)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"cifar10-12\.npz cannot be written: No space left"):
        cifar.load(options())
    assert not list(path.parent.iterdir())


def test_a_failed_download_names_the_ways_out(monkeypatch, tmp_path):
    monkeypatch.setattr("torchvision.datasets.CIFAR10", no_network)
    ways = (
        r"CIFAR-10 could not be downloaded \(no route\); --data_dir, data here, .* "
        r"cifar10-N\.npz with N of 12 or more"
    )
    with pytest.raises(UserError, match=ways + "$"):
        cifar.load(options())
    assert not list(tmp_path.iterdir())
    for points in (9, 11):
        write_cifar(tmp_path / "data", points)
    with pytest.raises(UserError, match=ways + r", cifar10-11\.npz there has too few$"):
        cifar.load(options())


def one_array():
    """A file as numpy.save writes it."""
    file = io.BytesIO()
    numpy.save(file, numpy.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", one_array(), None])
def test_a_damaged_file_is_named(path, content):
    path.write_bytes(path.read_bytes()[:-700] if content is None else content)
    with pytest.raises(UserError, match=r"cifar10-12\.npz is damaged; remove it"):
        cifar.load(options())


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("y_test", numpy.full(12, 10), "y_test has a label outside 0 to 9"),
        ("y_train", numpy.full(12, -1), "y_train has a label outside 0 to 9"),
        ("x_train", numpy.zeros((12, 28, 28, 3), numpy.uint8), r"but is uint8 of shape \(12, 28"),
        ("x_test", numpy.zeros((12, 32, 32, 3)), "x_test should be uint8 .* but is float64"),
        ("x_test", numpy.zeros((9, 32, 32, 3), numpy.uint8), r"\(12, 32, 32, 3\), but .* \(9, "),
    ],
)
def test_wrong_arrays_are_named(path, name, values, words):
    changed(path, **{name: values})
    with pytest.raises(UserError, match=words):
        cifar.load(options())


def test_a_missing_array_is_named(path):
    with numpy.load(path) as file:
        numpy.savez(path, **{name: file[name] for name in file if name != "y_test"})
    with pytest.raises(UserError, match="has no array 'y_test"):
        cifar.load(options())
