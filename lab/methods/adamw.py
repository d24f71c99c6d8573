"""AdamW with its learning rate and weight decay tuned: the baseline that every method is to beat.

Loshchilov and Hutter 2019, arXiv 1711.05101.
"""

from __future__ import annotations

from lab.methods.interface import Method


class AdamW(Method):
    """Nothing but the baseline."""
