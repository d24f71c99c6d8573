"""Order parameters of a network that learns a + b modulo p: five quantities, each in two forms.

The *first form* is that of a public project (github.com/ChanceSiyuan/grokking), which takes two of
them over test pairs; the one that tells grokking from memorising comes after it, over all p² pairs.
All are of a `ModularMLP`, with its first layer's rows split into those of a and of b, (p, width)
each: the *embeddings* of the numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lab.measures import fourier
from lab.networks.modular_mlp import ModularMLP

# Representation quality index


def parallelogram_quality(of_a: Tensor, of_b: Tensor, tolerance: float = 0.5) -> Tensor:
    """Share of the pairs of pairs with a + b ≡ c + d whose ‖e_a + e'_b − e_c − e'_d‖ ≤ tolerance.

    The first form of RQI, over all p²(p − 1) ordered cases instead of a sample (after Liu et al.
    2022, arXiv 2205.10343, there not modulo p). From 0 to 1. Chance: 0 while the rows are long
    against the tolerance; there is no scale in it, so that a network of small weights has 1. On
    circles e_a + e'_b depends on a − b as well, and it stays 0 when the rule has been learnt.

    Args:
        of_a, of_b: (p, d), the embeddings of both operands, p at least 2.
        tolerance: a distance, in units of the weights.
    """
    p = len(of_a)
    numbers = torch.arange(p, device=of_a.device)
    sums = of_a + of_b[(numbers[:, None] - numbers) % p]  # (a + b, a, d)
    near = torch.cdist(sums, sums) <= tolerance
    near.diagonal(dim1=1, dim2=2).fill_(False)
    return near.sum() / (p * p * (p - 1))


def distance_quality(embedding: Tensor) -> Tensor:
    """R²: the share of the variance of ‖e_i − e_j‖², i ≠ j, that i − j mod p explains.

    1 − Σ (‖e_i − e_j‖² − mean of that difference)² / Σ (‖e_i − e_j‖² − mean)², from 0 to 1. 1 on
    circles of any frequencies, which turn into themselves when a number is added to all; the same
    at every scale. Chance: 1 / (2p) for wide Gaussian embeddings, in which half of the variance
    comes from the rows' lengths, and every row is in every class. 0 for equal distances.

    Args:
        embedding: (p, d), p at least 3; both operands' embeddings side by side.
    """
    p = len(embedding)
    gram = embedding @ embedding.T
    squares = gram.diagonal()
    distances = squares[:, None] + squares - 2 * gram
    numbers = torch.arange(p, device=embedding.device)
    # Row d − 1 holds the distances of i and i + d, for all i.
    classes = distances[numbers, (numbers[1:, None] + numbers) % p]
    total = (classes - classes.mean()).square().sum()
    between = p * (classes.mean(1) - classes.mean()).square().sum()
    return torch.where(total > 0, between / total, 0.0)


# Ranks


def effective_rank(values: Tensor) -> Tensor:
    """exp of the entropy of values / Σ values, from 1 to the number of values.

    With singular values this is the effective rank of Roy and Vetterli 2007; with their squares it
    is the first form. Chance, for 194 × 512 independent entries (p = 97, width 512): 184 and 160.
    A lower one means a few directions that dominate.

    Args:
        values: (n,), not negative and not all zero; zeros add nothing.
    """
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp()


def participation_ratio(gram: Tensor) -> Tensor:
    """(tr C)² / tr C², the number of equal eigenvalues that would give it, from 1 to the rank of C.

    The first form, with the covariance C of the hidden units; there is no second. Chance: 144 over
    all pairs at uniform initial weights of p = 97 and width 512, mostly of 2p rows added in pairs.

    Args:
        gram: (d, d), a covariance up to a factor.
    """
    return gram.trace().square() / gram.square().sum()


def hidden_covariance(network: ModularMLP, pairs: Tensor) -> Tensor:
    """The covariance (width, width) of the hidden units over `pairs` (n, 2), times n."""
    h = _hidden(network)[pairs[:, 0], pairs[:, 1]]
    h = h - h.mean(0)
    return h.T @ h


# Kernel alignment


def summed_logits_kernel(network: ModularMLP, pairs: Tensor) -> Tensor:
    """The neural tangent kernel of Σ_c f_c, (n, n): the first form's.

    p (h·h' + 1) + s² (x·x' + 1) Σ_j (Σ_c W₂_cj)² d_j d'_j, with hidden units h, their gates d and
    the factor s of the first layer. Its second term, the first layer's, cancels over the classes:
    the gradients of cross-entropy by the logits sum to zero, so that the sums Σ_c W₂_cj hardly
    grow with the single weights.

    Args:
        network: as it is now.
        pairs: (n, 2).
    """
    hidden = _hidden(network)[pairs[:, 0], pairs[:, 1]]
    gated = (hidden > 0) * network.second.sum(0)
    shared = 1 + (pairs[:, None] == pairs).sum(2).to(hidden)  # x·x' + 1, of one-hot vectors
    first_layer = network.scale**2 * shared * (gated @ gated.T)
    return len(network.second) * (hidden @ hidden.T + 1) + first_layer


def label_kernel(labels: Tensor) -> Tensor:
    """1 where two labels are the same, else 0: (n, n) of (n,), the ideal kernel of the task."""
    return (labels[:, None] == labels).float()


def kernel_alignment(kernel: Tensor, target: Tensor) -> Tensor:
    """⟨K, T⟩ / (‖K‖ ‖T‖), not centred (Cristianini et al. 2001): the first form.

    From 0 to 1 for kernels of non-negative entries. A constant kernel has √(Σ n_c²) / n against the
    label kernel of classes of n_c points, 0.10 for p = 97, and every kernel of ReLU units has a
    positive mean: that part says nothing.
    """
    target = target.to(kernel)
    return (kernel * target).sum() / (kernel.norm() * target.norm())


class Centred(NamedTuple):
    """Alignments of centred kernels with the label kernel over all pairs, and their by-product."""

    of_trace_kernel: Tensor
    """The trace of the neural tangent kernel, Σ_c ⟨∇f_c(x), ∇f_c(x')⟩, over all parameters."""
    of_hidden: Tensor
    """The hidden units, h·h'."""
    covariance: Tensor
    """(width, width), of the hidden units, times p²."""


def centred_kernel_alignments(network: ModularMLP, labels: Tensor) -> Centred:
    """⟨K_c, T_c⟩ / (‖K_c‖ ‖T_c‖) of two kernels, K_c = J K J with J = 1 − 11ᵀ/n.

    Centred as by Cortes et al. 2012. From −1 to 1, from 0 for these. Chance: √((p − 1) / (n − 1)),
    0.10 for p = 97 and n = p², for a kernel in which each pair resembles itself alone (a multiple
    of the identity). Less where pairs resemble each other without regard to the label, as at the
    initial weights, and least for a + b, since pairs of one sum share neither operand. So compare a
    value with those of other steps, and a rise with the control's.

    The trace kernel is p (h·h' + 1) + s² (x·x' + 1) Σ_j v_j d_j d'_j with v_j = Σ_c W₂_cj². Neither
    kernel is formed, n² entries each: with g = d √v, and pairs as a grid, x·x' + 1 is one plus
    whether a is shared plus whether b is, so that sums over pairs of pairs become sums over the
    grid, its rows and its columns. Exact, for all p² pairs.

    Args:
        network: as it is now.
        labels: (p²,), of the pairs in the order a · p + b.
    """
    hidden, p = _hidden(network), len(network.second)
    gates = (hidden > 0) * network.second.square().sum(0).sqrt()  # g, (a, b, width)
    h = hidden - hidden.mean((0, 1))  # moves K by terms that J takes away
    n = p * p
    classes = torch.nn.functional.one_hot(labels, p).to(h)
    counts = classes.sum(0)
    z = classes - counts / n  # J Y, with T = Y Yᵀ

    flat, g, z_grid = h.flatten(0, 1), gates.flatten(0, 1), z.view(p, p, p)
    by_row, by_column = (gates, h, z_grid), [part.transpose(0, 1) for part in (gates, h, z_grid)]
    covariance = flat.T @ flat
    label_norm = (counts.diag() - counts.outer(counts) / n).norm()
    with_hidden = (flat.T @ z).square().sum()

    # tr(Yᵀ J K J Y), and the entries of K summed along its rows.
    with_gates, row_sums = (g.T @ z).square().sum(), g @ g.sum(0)
    # Σ K², whose weights are (x·x' + 1)² = 1 + 3 [a = a'] + 3 [b = b'] + 2 [both].
    cross = (flat.T @ g).square().sum()
    squares = (g.T @ g).square().sum() + 2 * g.square().sum(1).square().sum()
    for lines, turned in ((by_row, False), (by_column, True)):
        g_line, h_line, z_line = lines
        among_gates = g_line @ g_line.mT  # (p, p, p): within one row, or one column
        with_gates = with_gates + (g_line.mT @ z_line).square().sum()
        cross = cross + (among_gates * (h_line @ h_line.mT)).sum()
        squares = squares + 3 * among_gates.square().sum()
        of_line = among_gates.sum(2)
        row_sums = row_sums + (of_line.T if turned else of_line).flatten()

    factor = network.scale**2
    row_sums = factor * row_sums
    squared_norm = p**2 * covariance.square().sum() + 2 * p * factor * cross + factor**2 * squares
    squared_norm = squared_norm - 2 / n * row_sums.square().sum() + (row_sums.sum() / n).square()
    return Centred(
        (p * with_hidden + factor * with_gates) / (squared_norm.sqrt() * label_norm),
        with_hidden / (covariance.norm() * label_norm),
        covariance,
    )


def _hidden(network: ModularMLP) -> Tensor:
    """The hidden units of all pairs, (a, b, width)."""
    of_a, of_b = network.rows.split(len(network.second))
    return ((of_a[:, None] + of_b + network.first_bias) * network.scale).relu()


# Fourier signal-to-noise ratio


def constant_snr(of_a: Tensor, of_b: Tensor) -> Tensor:
    """Energy of all nonzero frequencies over that of the constant one, averaged over both operands.

    Σ_a ‖e_a − ē‖² / (p ‖ē‖²), the first form. From 0 without bound. Chance: about p − 1 (20 dB for
    p = 97) for entries of mean zero, in which all p Fourier modes are alike. It asks whether the
    columns have a mean, not whether there is a frequency in them.

    Args:
        of_a, of_b: (p, d), the embeddings of both operands.
    """

    def ratio(embedding: Tensor) -> Tensor:
        mean = embedding.mean(0)
        return (embedding - mean).square().sum() / (len(embedding) * mean.square().sum())

    return (ratio(of_a) + ratio(of_b)) / 2


def neuron_snr(embedding: Tensor) -> Tensor:
    """D / (1 − D) with D = `fourier.frequency_dominance`: energy of one frequency over all others.

    Each neuron's strongest frequency is the signal, the others are the noise (neurons of one
    frequency: Gromov 2023, arXiv 2301.02679). From 1 / (m − 1), m = (p − 1) / 2, without bound.
    Chance: D = H_m / m with the harmonic number H_m, 0.093 for p = 97: 0.102 or −9.9 dB.

    Args:
        embedding: (p, d), p odd and at least 5; both operands' embeddings side by side.
    """
    dominance = fourier.frequency_dominance(embedding)
    return dominance / (1 - dominance)


def decibels(ratio: Tensor) -> Tensor:
    """10 log₁₀ of a ratio of energies, in dB."""
    return 10 * ratio.log10()
