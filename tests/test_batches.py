"""Which points an update learns from."""

import torch

from lab.batches import minibatch


def rows(step, order, seed=0):
    return torch.arange(10)[minibatch(seed, step, 10, 4, order)].tolist()


def test_fixed_batches_are_the_same_points_in_every_epoch():
    first = [rows(step, "fixed") for step in range(3)]
    assert first == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [rows(step, "fixed", seed=1) for step in range(3, 6)] == first


def test_shuffled_batches_cover_every_epoch_in_a_new_order():
    epochs = [[rows(3 * epoch + part, "shuffled") for part in range(3)] for epoch in range(2)]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        assert sorted(point for batch in epoch for point in batch) == list(range(10))
    assert epochs[1] == [rows(step, "shuffled") for step in range(3, 6)]  # on nothing before
    assert epochs[1] != [rows(step, "shuffled", seed=1) for step in range(3, 6)]
