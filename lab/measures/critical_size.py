"""Where generalising costs less than memorising, by the least squared norm (Varma et al. 2023)."""

from __future__ import annotations

import math

import numpy

Metrics = dict[str, numpy.ndarray]


def tables(m: Metrics, seeds: int, sizes: int) -> Metrics:
    """Columns of the metrics as tables (seeds, sizes), those of random labels as `random_…`."""
    shaped = {key: column.reshape(seeds, sizes, 2) for key, column in m.items()}
    true = {key: table[..., 0] for key, table in shaped.items()}
    return true | {f"random_{key}": table[..., 1] for key, table in shaped.items()}


def crossing(pairs: numpy.ndarray, difference: numpy.ndarray) -> float:
    """Where a difference last rises above zero, interpolated linearly; nan if it does not."""
    rises = numpy.flatnonzero((difference[:-1] <= 0) & (difference[1:] > 0))
    if not len(rises):
        return math.nan
    i = rises[-1]
    share = -difference[i] / (difference[i + 1] - difference[i])
    return float(pairs[i] + share * (pairs[i + 1] - pairs[i]))


def critical_sizes(t: Metrics) -> dict[str, object]:
    """Critical sizes by norm and by accuracy, one a seed, and how fast the norms grow beyond.

    Args:
        t: what `tables` gives.
    """
    pairs = t["pairs"][0]
    true, random = t["squared_norm"], t["random_squared_norm"]
    critical = [crossing(pairs, difference) for difference in random - true]
    beyond = pairs > numpy.mean(critical)
    slopes = [
        float(numpy.polyfit(pairs[beyond], norms.mean(0)[beyond], 1)[0])
        if beyond.sum() > 1
        else math.nan
        for norms in (true, random)
    ]
    return {
        "critical_pairs": critical,
        "pairs_at_test_accuracy_0.5": [crossing(pairs, a - 0.5) for a in t["test_accuracy"]],
        "test_accuracy_at_critical_pairs": [
            float(numpy.interp(c, pairs, a))
            for c, a in zip(critical, t["test_accuracy"], strict=True)
        ],
        "squared_norm_per_pair_beyond": dict(zip(("true", "random"), slopes, strict=True)),
    }
