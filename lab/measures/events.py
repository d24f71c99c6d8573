"""When a network has memorised and when it has grokked."""

from __future__ import annotations

from typing import Any

import numpy

from lab.bench.files import first_step
from lab.bench.levels import GROKKED, MEMORISED


def grokking_events(metrics: dict[str, numpy.ndarray]) -> dict[str, Any]:
    """First measured steps of memorising and of grokking; None if never, or not measured."""

    def first(column: str, level: float) -> int | None:
        return first_step(metrics, column, level) if column in metrics else None

    return {
        "memorised_at": first("train_accuracy", MEMORISED),
        "grokked_at": first("test_accuracy", GROKKED),
    }
