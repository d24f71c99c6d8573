"""AdamW with its learning rate and weight decay tuned: the baseline that every method is to beat.

Weight decay of 2 to 8 alone makes modular addition grok far sooner than the baselines that papers
compare with (Loshchilov and Hutter 2019, arXiv 1711.05101, for the optimiser).
"""

from __future__ import annotations

from lab.methods.interface import Method


class AdamW(Method):
    """Nothing but the baseline."""
