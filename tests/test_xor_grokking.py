"""xor_grokking.py as users run it, and its basis against all dimensions."""

import signal

import numpy
import pytest
import torch

import xor_grokking
from helpers import interrupt, main_of, run
from lab.bench.files import read_metrics
from lab.bench.seeds import generator

TINY = ("--p", 400, "--n", 24, "--width", 16)
COLUMNS = (
    "step,loss,train_accuracy,test_accuracy,accuracy_at_0.2,accuracy_at_0.4,accuracy_at_0.6,"
    "accuracy_at_0.8,accuracy_at_1.0,centroid_norm_of_point,inner_product_of_point,alignment_of_point,"
    "alignment,test_alignment"
)
main = main_of(xor_grokking)


def test_the_command_users_type(tmp_path):
    words = (*TINY, "--steps", 30, "--jr", "1.0")
    done = run("xor_grokking.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("30 steps, ")  # no progress bar where there is no terminal
    assert "memorised at step " in done.stderr and "\r" not in done.stderr
    folder = tmp_path / done.stdout.splitlines()[-1]
    assert folder == tmp_path / "runs/xor_grokking/p=400,n=24,width=16,jr=1.0,steps=30"
    lines = (folder / "metrics.csv").read_text().splitlines()
    assert lines[0] == COLUMNS
    assert lines[1].startswith("0,")
    assert lines[-1].startswith("30,")
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "--jr 1.0" in (folder / "config.yaml").read_text()

    (folder / "figure.png").unlink()
    before = (folder / "checkpoint.pt").stat().st_mtime_ns
    again = run("xor_grokking.py", *words, folder=tmp_path)
    assert again.stdout == done.stdout
    assert again.stderr.startswith("already finished, figure drawn again; 30 steps, ")
    assert (folder / "figure.png").exists()
    assert (folder / "checkpoint.pt").stat().st_mtime_ns == before  # drawn, not trained again


def test_stopped_by_a_signal_it_saves_and_ends_as_if_it_had_not_been(tmp_path):
    words = (*TINY, "--steps", 400, "--jr", "0.5", "--checkpoint_every", 0)
    cut = tmp_path / "runs/xor_grokking/cut"
    for rows, number in ((8, signal.SIGINT), (20, signal.SIGTERM)):
        stopped = interrupt(
            *("xor_grokking.py", *words, "--name", "cut"),
            folder=tmp_path, run_folder=cut, rows=rows, signal=number,
        )  # fmt: skip
        assert stopped.returncode == 128 + number
        assert "the same command" in stopped.stderr.splitlines()[-1]
        assert len(stopped.stderr.splitlines()) == (1 if rows == 8 else 2)  # it went on before
    ended = run("xor_grokking.py", *words, "--name", "cut", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "continuing after" in ended.stderr
    whole = run("xor_grokking.py", *words, "--name", "whole", folder=tmp_path)
    assert whole.returncode == 0, whole.stderr

    both = [tmp_path / "runs/xor_grokking" / name for name in ("cut", "whole")]
    assert len({(folder / "metrics.csv").read_bytes() for folder in both}) == 1
    states = [torch.load(folder / "checkpoint.pt", weights_only=True)["state"] for folder in both]
    for name, weights in states[0]["network"].items():
        assert torch.equal(weights, states[1]["network"][name])


@pytest.mark.parametrize("jr", ["0.0", "1.0"])
def test_basis_and_full_dimension_give_the_same_metrics(jr):
    words = (*TINY, "--steps", 120, "--num_logs", 12, "--jr", jr)
    assert main(*words, "--name", "basis") == 0
    assert main(*words, "--name", "full", "--full_dimension") == 0
    basis, full = (read_metrics(f"runs/xor_grokking/{name}") for name in ("basis", "full"))
    assert basis.keys() == full.keys()
    assert len(basis["step"]) == 12
    for column in basis:
        if column.startswith("accuracy_at_"):  # other draws of the same law: 24 points
            assert abs(basis[column] - full[column]).mean() < 0.25
        else:
            numpy.testing.assert_allclose(basis[column], full[column], rtol=1e-9, atol=1e-12)
    assert basis["train_accuracy"][-1] == 1.0


def test_perturbed_outputs_agree_when_the_noise_is_projected():
    o = xor_grokking.Options(p=400, n=24, width=16)
    x, _, x_test, _ = xor_grokking.xor_clusters(o)
    noisy = x_test.clone()
    noisy[:, 2:] += 0.8 * torch.randn(24, 398, generator=generator(1), dtype=torch.float64)
    w2 = torch.randn(16, generator=generator(2), dtype=torch.float64)
    outputs = []
    for coordinates in (
        xor_grokking.span(x, noisy, lambda: xor_grokking.first_layer(o), kept=2),
        xor_grokking.plain(x, noisy, lambda: xor_grokking.first_layer(o)),
    ):
        network = xor_grokking.Network(coordinates.weights, w2, coordinates.support)
        outputs.append(network.head(network.first(coordinates.others)))
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)


def test_data_are_the_paper_s_clusters():
    o = xor_grokking.Options(p=1000, n=200, epsilon=0.05)
    x, y, x_test, y_test = xor_grokking.xor_clusters(o)
    for points, labels in ((x, y), (x_test, y_test)):
        assert torch.equal(points[:, :2].abs(), torch.ones(200, 2, dtype=torch.float64))
        assert torch.equal(labels, points[:, 0] * points[:, 1])
        assert torch.equal(points[:, 2:].abs(), torch.full((200, 998), 0.05, dtype=torch.float64))
        assert abs(points[:, 2:].mean()) < 4 * 0.05 / (200 * 998) ** 0.5
    assert not torch.equal(x, x_test)


def test_regulariser_changes_neither_data_nor_weights():
    for jr in ("0.0", "1.0"):
        main(*TINY, "--steps", 0, "--jr", jr, "--name", f"jr{jr}")
    first, second = (read_metrics(f"runs/xor_grokking/jr{jr}") for jr in ("0.0", "1.0"))
    assert {k: v.tolist() for k, v in first.items()} == {k: v.tolist() for k, v in second.items()}


def test_alignment_rises_and_the_regulariser_lowers_the_norm():
    words = (*TINY, "--steps", 20)
    norms = []
    for jr in ("0.0", "1.0"):
        assert main(*words, "--jr", jr, "--name", f"jr{jr}") == 0
        metrics = read_metrics(f"runs/xor_grokking/jr{jr}")
        norms.append(metrics["centroid_norm_of_point"][-1])
        assert metrics["alignment"][-1] > 0.3 > 10 * abs(metrics["alignment"][0])
    assert norms[1] < 0.5 * norms[0]


def test_divergence_stops_with_step_and_learning_rate(capsys):
    assert main(*TINY, "--steps", 200, "--lr", "1e6", "--name", "wild") == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--lr 1000000.0" in message
    assert " at step " in message


def test_a_folder_with_other_options_is_refused(capsys):
    assert main(*TINY, "--steps", 1, "--name", "mine") == 0
    assert main(*TINY, "--steps", 2, "--name", "mine") == 2
    assert "steps: 1 there, 2 here" in capsys.readouterr().err
    assert main(*TINY, "--steps", 2, "--name", "mine", "--overwrite") == 0
