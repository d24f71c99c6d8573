"""The image sets: what is read, in what order and scale, and what is said of a bad file."""

import socket
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from lab.bench.errors import UserError
from lab.data import images
from lab.data.images import ImageOptions

FILES = {
    "train-images-idx3-ubyte": 40,
    "train-labels-idx1-ubyte": 40,
    "t10k-images-idx3-ubyte": 20,
    "t10k-labels-idx1-ubyte": 20,
}


@pytest.fixture
def options(tmp_path):
    """Options over a folder with a small set in MNIST's own format."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in FILES.items():
        if "images" in name:
            pixels = torch.arange(count, dtype=torch.uint8)[:, None].expand(-1, 784)
            content = struct.pack(">iiii", 0x803, count, 28, 28) + bytes(pixels.flatten().tolist())
        else:
            labels = [(7 * i) % 10 for i in range(count)]
            content = struct.pack(">ii", 0x801, count) + bytes(labels)
        (raw / name).write_bytes(content)
    return ImageOptions(data_dir=str(tmp_path), dtype="float64")


def test_first_points_normalised_and_flattened(options):
    x, y, x_test, y_test = images.load(replace(options, points=12))
    assert x.shape == x_test.shape == (12, 784)
    assert x.dtype == torch.float64
    expected = (torch.arange(12).double() / 255 - 0.1307) / 0.3081
    torch.testing.assert_close(x[:, 5], expected)
    assert y.tolist() == [(7 * i) % 10 for i in range(12)]
    assert y_test.dtype == torch.int64
    assert len(images.load(options).x) == 40  # as many as there are


def test_classes_come_in_equal_shares_and_in_order(options):
    x, y, _, y_test = images.load(replace(options, points=6), classes=(0, 1))
    assert y.tolist() == [0, 1, 0, 1, 0, 1]
    position = (x[:, 0] * 0.3081 + 0.1307) * 255
    assert position.round().tolist() == [0, 3, 10, 13, 20, 23]
    assert set(y_test.tolist()) == {0, 1}


def test_digits_need_no_files(tmp_path):
    o = ImageOptions(dataset="digits", data_dir=str(tmp_path / "none"), points=5000)
    x, y, x_test, y_test = images.load(o)
    assert x.shape == (1024, 64)
    assert x_test.shape == (773, 64)
    assert abs(x.mean()) < 1e-5
    assert x.std().item() == pytest.approx(1.0, abs=1e-5)
    assert sorted(set(y.tolist())) == sorted(set(y_test.tolist())) == list(range(10))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", None])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_foreign_file_is_named(options, name, content):
    path = Path(options.data_dir) / "MNIST" / "raw" / name
    path.write_bytes(path.read_bytes()[:-7] if content is None else content)
    with pytest.raises(
        UserError, match=r"mnist files in --data_dir .* damaged or not mnist"
    ) as error:
        images.load(options)
    assert "\n" not in str(error.value)


def test_labels_beyond_nine_are_refused(options):
    path = Path(options.data_dir) / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0b")
    with pytest.raises(UserError, match="a label is not in 0 to 9"):
        images.load(options)


def test_a_failed_download_names_the_ways_out(options, monkeypatch, tmp_path):
    def no_network(*_, **__):
        raise URLError(socket.gaierror(-3, "Temporary failure in name resolution"))

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)
    for folder in ("empty", "new/and/deep"):
        with pytest.raises(UserError) as error:
            images.load(replace(options, data_dir=folder))
        assert str(error.value) == (
            "mnist could not be downloaded ([Errno -3] Temporary failure in name resolution); "
            f"--data_dir, {folder} here, takes a folder that holds it already, and "
            "scikit-learn's digits need no download"  # not by which option: that is the script's
        )
        assert not Path(folder).exists() and not Path("new").exists()


def test_a_failed_download_leaves_what_was_there(options, monkeypatch):
    def cut_off(url, download_root, **_):
        (Path(download_root) / "train-images-idx3-ubyte.gz").write_bytes(b"half of it")
        raise zlib.error("invalid block")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", cut_off)
    Path("mine/sub").mkdir(parents=True)
    with pytest.raises(UserError, match=r"downloaded \(invalid block\)"):
        images.load(replace(options, data_dir="mine"))
    assert Path("mine/sub").is_dir() and Path("mine/MNIST/raw").is_dir()
