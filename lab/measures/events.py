"""When a network has memorised and when it has grokked."""

from __future__ import annotations

from typing import Any

import numpy

from lab.bench.files import first_step

MEMORISED, GROKKED = 0.99, 0.95  # training and test accuracy above which we say so


def grokking_events(metrics: dict[str, numpy.ndarray]) -> dict[str, Any]:
    """First measured steps of memorising and of generalising, or None."""
    return {
        "memorised_at": first_step(metrics, "train_accuracy", MEMORISED),
        "grokked_at": first_step(metrics, "test_accuracy", GROKKED),
    }
