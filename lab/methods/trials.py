"""The settings of a run: those of a quasi-random trial, or those of a command line.

A trial is a point of Sobol's sequence, shifted for each task, so that all methods are tried with
the same learning rates and weight decays; a method's own knobs are two further dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.stats import qmc

from lab.bench.errors import UserError
from lab.bench.seeds import generator
from lab.bench.takes import Takes
from lab.methods.interface import MOST_KNOBS, Knob, Method

SHARED = {"lr": Knob(1e-3, 1e-3, 1e-1), "weight_decay": Knob(1e-2, 1e-2, 10.0)}
"""What every method is tuned in; the defaults are torch's own for AdamW."""
DIMENSIONS = len(SHARED) + MOST_KNOBS
LONGEST = 10_000  # windows of gradients, each as large as the network


def drawn(method: type[Method], task: str, trial: int) -> dict[str, float]:
    """Learning rate, weight decay and knobs of a trial, by name.

    Args:
        method: its knobs are drawn as well.
        task: its name, which decides the shift.
        trial: from 0 on.
    """
    space = {**SHARED, **method.knobs()}
    points = qmc.Sobol(DIMENSIONS, scramble=False).random_base2(trial.bit_length())
    shifts = torch.rand(DIMENSIONS, generator=generator(0, "trials", task), dtype=torch.float64)
    shares = [float(place + shift) % 1 for place, shift in zip(points[trial], shifts, strict=True)]
    return {key: knob.at(shares[i]) for i, (key, knob) in enumerate(space.items())}


def given(
    method: type[Method], lr: float | None, weight_decay: float | None, knobs: Sequence[str]
) -> dict[str, float]:
    """The same from a command line; what is not given has its default.

    Args:
        method: the knobs have to be its.
        lr, weight_decay: or None.
        knobs: words such as "alpha=0.98".

    Raises:
        UserError: for a knob that is another method's, or a value that it does not take.
    """
    own = method.knobs()
    found = {key: knob.default for key, knob in {**SHARED, **own}.items()}
    found |= {k: v for k, v in {"lr": lr, "weight_decay": weight_decay}.items() if v is not None}
    for number, word in enumerate(knobs):
        key, equals, value = word.partition("=")
        if not equals or key not in own:
            has = f"{' and '.join(own)}, as in --knobs {next(iter(own))}=…" if own else "none"
            raise UserError(f"--knobs takes those of the method, which has {has}; got {word!r}")
        if any(other.startswith(f"{key}=") for other in knobs[:number]):
            raise UserError(f"--knobs takes each knob once, got {key} twice")
        if own[key].whole:
            takes = Takes(int, least=1, most=LONGEST)
        else:
            takes = Takes(float, above=0, most=1.0 if own[key].near_one else None)
        found[key] = takes(f"knobs {key}", value)
    return found
