"""The smallest part of a network that still answers, in weights and FLOPs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

LOSS = 0.01  # of the training accuracy that pruning may cost, as a difference
RESOLUTION = 2**-10  # of the share of weights that are zeroed
# Of the parameters of both networks on modular pairs: rows that a pair looks up, and positions
# at which a matrix is applied, where these are more than one.
LOOKED_UP = {"rows": 2, "token_embedding": 3}
POSITIONS = {"keys": 3, "values": 3}


def flops(weights: dict[str, Tensor]) -> Tensor:
    """Multiplications and additions of one pair's answer, averaged over all pairs; zeros are free.

    A weight that is not zero costs two in a matrix at each position where that is applied, one as
    a bias or in a position's embedding, and one for each pair that looks it up. What has no weights
    (ReLU, the softmax and the products of attention) is left out: pruning does not change it.

    Args:
        weights: parameters by name, of a `ModularMLP` or a `ModularTransformer`.
    """
    total = torch.zeros((), dtype=torch.float64)
    for name, weight in weights.items():
        if name in LOOKED_UP:
            each = LOOKED_UP[name] / len(weight)
        elif weight.ndim == 1 or name == "position_embedding":
            each = 1.0
        else:
            each = 2.0 * POSITIONS.get(name, 1)
        total += each * weight.count_nonzero().cpu()
    return total


def zeroed(weights: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """The weights with this share of all of them at zero, smallest magnitudes first.

    Those of one magnitude go together, so that it may be more of them.
    """
    magnitudes = torch.cat([w.abs().flatten() for w in weights.values()])
    number = round(share * len(magnitudes))
    if number == 0:
        return dict(weights)
    edge = magnitudes.kthvalue(number).values
    return {name: torch.where(w.abs() > edge, w, 0.0) for name, w in weights.items()}


def pruned_circuit(
    network: torch.nn.Module, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> dict[str, Tensor | float]:
    """The smallest part of a network that answers its training points almost as well.

    Weights and biases of all layers are zeroed, smallest magnitudes first, up to where the accuracy
    on the points falls by more than `LOSS`, found by bisection to `RESOLUTION`: where the
    accuracy does not fall monotonically, one of the places where it passes that level. A proxy of
    a circuit's efficiency (parameter sparsity and FLOPs, of the project grokking-mechanism-test).
    It says something of a network that has memorised; one that is at chance has nothing to lose.

    Args:
        network: pairs (B, 2) -> logits (B, C).
        train, test: pairs, and their classes (B,).

    Returns:
        of what is left `sparsity`, the share of weights that are zero, `pruned_flops` (see
        `flops`), and `pruned_test_accuracy`.
    """
    weights = {name: w.detach() for name, w in network.named_parameters()}

    def right(some: dict[str, Tensor], x: Tensor, y: Tensor) -> int:
        return int((functional_call(network, some, (x,)).argmax(1) == y).sum())

    least = right(weights, *train) - LOSS * len(train[1])
    kept, lost = (0.0, 1.0) if right(zeroed(weights, 1.0), *train) < least else (1.0, 1.0)
    while lost - kept > RESOLUTION:
        middle = (kept + lost) / 2
        if right(zeroed(weights, middle), *train) < least:
            lost = middle
        else:
            kept = middle
    left = zeroed(weights, kept)
    nonzero = sum(w.count_nonzero() for w in left.values())
    return {
        "sparsity": 1 - nonzero / sum(w.numel() for w in left.values()),
        "pruned_flops": flops(left),
        "pruned_test_accuracy": right(left, *test) / len(test[1]),
    }
