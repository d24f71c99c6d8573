"""Copying: data, loss and margins by a second route, the command."""

import math

import pytest
import torch
import yaml

import sequence_copying
from helpers import code_of, run
from lab.bench.files import read_rows
from lab.bench.seeds import generator
from lab.data.tasks import distinct_points, sequences_to_copy
from lab.measures.losses import cross_entropy
from lab.measures.smoothness import changes_by_one_symbol
from lab.networks.transformer import OneLayerTransformer
from sequence_copying import margins

COLUMNS = [
    "step", "loss", "train_accuracy", "test_accuracy", "parameter_norm", "jacobian_norm",
    "alignment", "margin_alignment", "test_margin_alignment", "train_sequence_accuracy",
    "test_sequence_accuracy", "logit_change", "change_elsewhere",
]  # fmt: skip
SMALL = ["--samples", "10", "--test_samples", "20", "--symbols", "5", "--length", "3",
         "--d_model", "8", "--heads", "2", "--d_mlp", "8"]  # fmt: skip


def main(arguments):
    return sequence_copying.main([*arguments, "--device", "cpu"])


def outputs_and_answers():
    _, y = sequences_to_copy(50, symbols=5, length=3, seed=0)
    return torch.randn(50, 15, dtype=torch.float64, generator=generator(0, "o")), y


def test_points_are_all_different_and_can_be_all_there_are():
    drawn = distinct_points(81, 3, 4, generator(0, "data"))
    assert drawn.shape == (81, 4)
    assert sorted(map(tuple, drawn.tolist())) == sorted(
        tuple(i // 3**c % 3 for c in (3, 2, 1, 0)) for i in range(81)
    )
    assert torch.equal(drawn, distinct_points(81, 3, 4, generator(0, "data")))
    assert not torch.equal(drawn, distinct_points(81, 3, 4, generator(0, "random labels")))


def test_the_copier_reads_a_sequence_then_blanks_and_is_asked_for_the_sequence():
    x, y = sequences_to_copy(50, symbols=5, length=3, seed=0)
    assert x.shape == (50, 6)
    assert torch.equal(x[:, :3], y) and (x[:, 3:] == 5).all()
    same, other = sequences_to_copy(50, symbols=5, length=3, seed=0, random_labels=True)
    assert torch.equal(x, same) and 0.05 < (other == y).double().mean() < 0.4


def test_a_measurement_is_that_of_the_transformer_on_the_tokens(tmp_path):
    """The logits of the i-th blank are the i-th answer's."""
    arguments = [*SMALL, "--steps", "0", "--dtype", "float64", "--name", "r"]
    assert main([*arguments, "--out_dir", str(tmp_path)]) == 0
    (row,) = read_rows(tmp_path / "sequence_copying" / "r")
    draws = generator(0, "weights")
    transformer = OneLayerTransformer(6, 6, 5, 8, 2, 8, draws, init_scale=3.0).double()
    x, y = sequences_to_copy(30, symbols=5, length=3, seed=0)
    with torch.no_grad():
        logits = transformer(x, last=3)
    right = logits.argmax(2) == y
    for name, some in (("train", right[:10]), ("test", right[10:])):
        assert row[f"{name}_accuracy"] == pytest.approx(some.double().mean().item())
        assert row[f"{name}_sequence_accuracy"] == pytest.approx(some.all(1).double().mean().item())

    def on_blanks(some):
        with torch.no_grad():
            return transformer(torch.cat([some, torch.full_like(some, 5)], dim=1), last=3)

    for name, value in changes_by_one_symbol(on_blanks, x[10:20, :3], 5).items():
        assert row[name] == pytest.approx(value.item())
    each = torch.nn.functional.cross_entropy(logits[:10].flatten(0, 1), y[:10].flatten())
    assert row["loss"] == pytest.approx(each.item(), rel=1e-12)


def test_the_loss_from_its_definition():
    outputs, y = outputs_and_answers()
    expected = []
    for row, answer in zip(outputs.reshape(50, 3, 5).tolist(), y.tolist(), strict=True):
        for logits, symbol in zip(row, answer, strict=True):
            expected.append(math.log(sum(map(math.exp, logits))) - logits[symbol])
    assert cross_entropy(outputs, y).item() == pytest.approx(sum(expected) / 150, rel=1e-12)


def test_margins_from_their_definition_and_free_of_what_cross_entropy_ignores():
    outputs, y = outputs_and_answers()
    expected = [
        sum(logits[s] - sum(logits) / 5 for logits, s in zip(row, answer, strict=True))
        for row, answer in zip(outputs.reshape(50, 3, 5).tolist(), y.tolist(), strict=True)
    ]
    torch.testing.assert_close(margins(outputs, y), torch.tensor(expected, dtype=torch.float64))
    # The same constant on all logits of an answer: a change that the loss and the margin do not
    # see, but the sum of the logits does.
    constants = torch.randn(50, 3, 1, dtype=torch.float64, generator=generator(0, "c"))
    shifted = (outputs.reshape(50, 3, 5) + constants).flatten(1)
    torch.testing.assert_close(margins(shifted, y), margins(outputs, y))
    torch.testing.assert_close(cross_entropy(shifted, y), cross_entropy(outputs, y))
    assert (shifted.sum(1) - outputs.sum(1)).abs().min() > 1e-3


def test_the_command_that_a_user_types(tmp_path):
    words = (*SMALL, "--steps", "20", "--jr", "0.01", "--device", "cpu")
    done = run("sequence_copying.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / done.stdout.strip().splitlines()[-1]
    files = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoint.pt", "figure.png"} <= files
    table = read_rows(folder)
    assert list(table[0]) == COLUMNS
    assert {name for names in sequence_copying.PANELS.values() for name in names} < set(COLUMNS)
    assert (table[0]["step"], table[-1]["step"]) == (0, 20)
    assert all(math.isfinite(value) for row in table for value in row.values())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["lr"], config["weight_decay"], config["batch_size"]) == (0.001, 1.0, None)
    assert set(config["results"]) == {"memorised_at", "grokked_at"}


def test_the_regulariser_lowers_the_norm_of_the_jacobian(tmp_path):
    for jr in ("0", "1"):
        arguments = [*SMALL, "--steps", "200", "--jr", jr, "--name", jr]
        assert main([*arguments, "--out_dir", str(tmp_path)]) == 0
    plain, regularised = (read_rows(tmp_path / "sequence_copying" / jr)[-1] for jr in ("0", "1"))
    assert regularised["jacobian_norm"] < 0.7 * plain["jacobian_norm"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--length", "2"], "--samples and --test_samples take at most 64 together"),
    ],
)
def test_bad_input_is_named_before_a_folder_is_made(arguments, complaint, tmp_path, capsys):
    code = code_of(main, [*arguments, "--out_dir", str(tmp_path / "runs")])
    error = capsys.readouterr().err.strip()
    assert code == 2 and complaint in error and "\n" not in error
    assert not (tmp_path / "runs").exists()
