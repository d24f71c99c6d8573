"""float64, also where a device has none."""

from __future__ import annotations

from torch import Tensor


def double(values: Tensor) -> Tensor:
    """The values in float64: where they are, but on the CPU if they are on an Apple GPU."""
    return (values.cpu() if values.device.type == "mps" else values).double()
