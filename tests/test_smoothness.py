"""Walsh energies and changes by one symbol, of functions whose values are known."""

import math

import pytest
import torch

from lab.bench.seeds import generator
from lab.measures.smoothness import Cube, changes_by_one_symbol, mean_degree


def cube(n):
    return Cube(n, generator(0, "cube"), torch.zeros(1, dtype=torch.float64))


def test_the_energies_of_a_small_cube_are_exact():
    def f(x):  # energies 1, 1, 4 and 9 on sets of 0, 1, 3 and 4 signs
        return -1 + x[:, 3] + 2 * x[:, :3].prod(1) + 3 * x[:, 4:8].prod(1)

    shares = {name: float(share) for name, share in cube(10).shares(f, 3).items()}
    assert shares == pytest.approx(
        {
            "parity_share": 4 / 15,
            "energy_degree_0": 1 / 15,
            "energy_degree_1": 1 / 15,
            "energy_degree_2": 0,
            "energy_degree_3": 4 / 15,
            "energy_higher": 9 / 15,
            "mean_degree": (1 + 3 * 4 + 4 * 9) / 15,
        },
        abs=1e-12,
    )


def test_the_energies_of_a_sample_are_those_of_the_cube():
    """The standard errors are below 0.012, the bias of an estimate without correction 0.5."""

    def f(x):
        return x[:, :3].prod(1) + x[:, 4] * x[:, 9] + x[:, 20] + x[:, 5:25].prod(1)

    sampled = cube(30)
    assert not sampled.all
    shares = sampled.shares(f, 3)
    for name in ("parity_share", "energy_degree_1", "energy_degree_2", "energy_degree_3"):
        assert shares[name] == pytest.approx(0.25, abs=0.035)
    assert shares["energy_higher"] == pytest.approx(0.25, abs=0.06)
    assert shares["energy_degree_0"] == pytest.approx(0, abs=0.005)
    assert shares["mean_degree"] == pytest.approx((3 + 2 + 1 + 20) / 4, rel=0.3)


def test_the_mean_degree_of_a_parity_is_its_size_at_every_point():
    x = cube(12).points[[5, 77]]
    assert mean_degree(lambda x: 7 * x[:, :4].prod(1), x) == pytest.approx(4)
    assert mean_degree(lambda x: torch.ones_like(x[:, 0]), x) == 0


SEQUENCES = torch.randint(0, 8, (20, 6), generator=generator(0, "sequences"))


def one_hot(sequences):  # the constants are what cross-entropy does not see
    logits = torch.nn.functional.one_hot(sequences, 8).double()
    return 5 * logits + sequences.sum(1)[:, None, None]


@pytest.mark.parametrize(
    ("logits_of", "elsewhere", "change"),
    [
        (one_hot, 0, 1),
        (lambda s: one_hot(s.flip(1)), 1, 1),
        # Three changes of two answers each, three of none:
        (lambda s: one_hot(s[:, [0, 1, 2] * 2]), 0.5, math.sqrt(2) / 2),
    ],
    ids=["copy", "reversed", "first half twice"],
)
def test_copies_change_where_they_should(logits_of, elsewhere, change):
    found = changes_by_one_symbol(logits_of, SEQUENCES, 8)
    assert found["change_elsewhere"] == pytest.approx(elsewhere, abs=1e-12)
    assert found["logit_change"] == pytest.approx(change * math.sqrt(2 * 8 / (6 * 7)))


def test_a_table_without_rule_changes_as_if_the_sequence_were_another():
    def table(sequences):
        rows = [
            torch.randn(6, 8, dtype=torch.float64, generator=generator(0, *row))
            for row in sequences.tolist()
        ]
        return torch.stack(rows)

    found = changes_by_one_symbol(table, SEQUENCES[:5], 8)
    assert found["logit_change"] == pytest.approx(math.sqrt(2), rel=0.05)
    assert found["change_elsewhere"] == pytest.approx(5 / 6, abs=0.02)


def test_all_changes_are_those_of_a_loop():
    weights = torch.randn(3, 4, 3 * 4, dtype=torch.float64, generator=generator(0, "w"))

    def logits_of(sequences):
        return (
            torch.stack([weights[i, s] for i, s in enumerate(sequences.T)]).prod(0).view(-1, 3, 4)
        )

    sequences = torch.tensor([[0, 1, 2], [3, 3, 0]])
    before = logits_of(sequences) - logits_of(sequences).mean(2, keepdim=True)
    norms, there, everywhere = [], 0.0, 0.0
    for row, sequence in enumerate(sequences):
        for place in range(3):
            for symbol in set(range(4)) - {int(sequence[place])}:
                other = sequence.clone()
                other[place] = symbol
                after = logits_of(other[None])[0]
                change = after - after.mean(1, keepdim=True) - before[row]
                norms.append(change.norm())
                there += change[place].square().sum()
                everywhere += change.square().sum()
    found = changes_by_one_symbol(logits_of, sequences, 4)
    mean_norm = before.flatten(1).norm(dim=1).mean()
    torch.testing.assert_close(found["logit_change"], torch.stack(norms).mean() / mean_norm)
    torch.testing.assert_close(found["change_elsewhere"], 1 - there / everywhere)
