"""The captured step: off CUDA it is the step itself, and a warm-up leaves no trace."""

import torch

from lab.capture import Captured, unchanged
from lab.models import relu_mlp
from lab.seeds import generator


def training():
    network, draws = relu_mlp([3, 5, 2], generator(0)), generator(1)
    optimiser = torch.optim.AdamW(network.parameters(), 0.1, fused=True)

    def step(x):
        noise = torch.randn(x.shape, generator=draws, dtype=x.dtype)
        loss = network(x + noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step, (network, optimiser, draws)


def losses(warm_ups):
    step, parts = training()
    captured = Captured(step, *parts)
    x = torch.ones(4, 3, dtype=torch.float64)
    found = []
    for warm_up in warm_ups:
        if warm_up:
            with unchanged(*parts):
                warmed = [captured(x) for _ in range(3)]
            assert len(set(warmed)) == 3
        found.append(captured(x).item())
    return found


def test_a_warm_up_changes_nothing():
    expected = losses([False] * 4)
    assert len(set(expected)) == 4
    assert losses([True, False, False, False]) == expected  # before the averages are there
    assert losses([False, False, True, False]) == expected


def test_tensors_stay_where_they_are():
    step, parts = training()
    network, optimiser, _ = parts
    step(torch.ones(4, 3, dtype=torch.float64))
    parameters = list(network.parameters())
    averages = [optimiser.state[p]["exp_avg"] for p in parameters]
    with unchanged(*parts):
        step(torch.ones(4, 3, dtype=torch.float64))
    for p, q, average in zip(parameters, network.parameters(), averages, strict=True):
        assert p is q
        assert optimiser.state[p]["exp_avg"] is average
