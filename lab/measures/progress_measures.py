"""Progress measures of Nanda et al. 2023 (arXiv 2301.05217) on modular addition.

How much of a network's answer is made of a few waves in a + b, the rule, and how much of what it
knows of the training pairs is not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lab.measures import fourier

KEY_FREQUENCIES = 5


def progress(
    logits: Tensor, labels: Tensor, train_set: Tensor, loss_fn: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Losses with and without the strongest waves in the answer, at this moment of training.

    Restricted loss, of all pairs: of these waves and the mean alone. Excluded loss, of the
    training pairs: of the logits without these waves. Nanda et al. take the waves of the final
    network instead.

    Args:
        logits: (p², p) of all pairs, p to each answer.
        labels: (p²,), the answers.
        train_set: (n,), indices of the training pairs.
        loss_fn: logits (B, p), labels (B,) -> scalar.

    Returns:
        `restricted_loss`, `excluded_loss`, and `key_frequency_1` …, the strongest first, of which
        there are five, or (p − 1) / 2 if that is less.
    """
    p = logits.shape[1]
    # A product, since CUDA's index_add adds in any order.
    by_answer = torch.nn.functional.one_hot(labels, p).to(logits).T @ logits / p  # (answers, p)
    norms = fourier.frequency_norms(by_answer)
    keys = norms.topk(min(KEY_FREQUENCIES, len(norms))).indices + 1
    waves = fourier.component(by_answer, keys)
    y = labels[train_set]
    return {
        "restricted_loss": loss_fn(logits.mean(0) + waves, torch.arange(p, device=labels.device)),
        "excluded_loss": loss_fn(logits[train_set] - waves[y], y),
        **{f"key_frequency_{i}": key for i, key in enumerate(keys, start=1)},
    }
