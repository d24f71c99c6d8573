"""Fourier features of an embedding of the numbers 0 … p − 1, p an odd prime.

An embedding is (p, d), one row a number and nothing else: no row for "=", which is on no circle.
Untied embeddings of two operands go side by side, as (p, 2d). The transform is over the numbers,
without the constant frequency, which is the embedding's mean, so that m = (p − 1) / 2 frequencies
k = 1 … m remain, each with a cosine and a sine part: E_a − mean = √(2/p) Σ_k Re(c_k ω^(k a)),
ω = exp(2πi / p), where `coefficients` gives c_k ∈ ℂᵈ.

"Chance" is the value for independent Gaussian entries, as at initialisation.
"""

from __future__ import annotations

import torch
from torch import Tensor


def coefficients(embedding: Tensor) -> Tensor:
    """Fourier coefficients (m, d), complex; row k − 1 belongs to frequency k.

    The energy Σ|c|² is that of the embedding about its mean, Σ (E_a − mean)² (Parseval), and
    column by column as well.

    Args:
        embedding: (p, d), p odd and at least 3.

    Raises:
        ValueError: if p is even or below 3.
    """
    p = len(embedding)
    if p < 3 or p % 2 == 0:
        raise ValueError(f"the embedding must have an odd number of rows, 3 or more, got {p}")
    # √2, since the real transform leaves out the frequencies −k, which hold as much energy.
    return 2**0.5 * torch.fft.rfft(embedding, dim=0, norm="ortho")[1:]


def frequency_norms(embedding: Tensor) -> Tensor:
    """‖c_k‖ of each frequency, (m,): the norms of the Fourier features (Nanda et al. 2023)."""
    return torch.linalg.vector_norm(coefficients(embedding), dim=1)


def gini(values: Tensor) -> Tensor:
    """Gini coefficient Σ_ij |x_i − x_j| / (2 n Σ_i x_i) of n values that are not negative.

    A measure of sparsity (Hurley and Rickard 2009, arXiv 0811.4706), which Nanda et al. 2023
    apply to the `frequency_norms` of their matrices. From 0, all values alike, over 1 − r / n for
    r equal ones and zeros else, to 1 − 1 / n. Chance for the norms of an embedding (p, d):
    1 / (2 √(π d)) for large d, 0.025 for d = 128.
    """
    n = len(values)
    ranks = torch.arange(1, n + 1, device=values.device)
    return 2 * (ranks * values.sort().values).sum() / (n * values.sum()) - (n + 1) / n


def component(embedding: Tensor, frequencies: Tensor) -> Tensor:
    """The part (p, d) of an embedding (p, d) that waves of these frequencies, 1 … m, make up."""
    c = torch.fft.rfft(embedding, dim=0)
    kept = torch.zeros_like(c)
    kept[frequencies] = c[frequencies]
    return torch.fft.irfft(kept, n=len(embedding), dim=0)


def norm_spread(embedding: Tensor) -> Tensor:
    """Standard deviation of the norms ‖c_k‖ over the frequencies, divided by their mean.

    From 0, all frequencies alike, to √(m − 1), a single frequency. Chance: √((1 − 1/m) / (4 d))
    for large d, 0.015 for p = 23 and d = 1024, so that a wide embedding begins with equal norms.
    ("Fourier feature norms equalise" is a claim of the project grokking-mechanism-test.)
    """
    norms = frequency_norms(embedding)
    return norms.std(correction=0) / norms.mean()


def frequency_dominance(embedding: Tensor) -> Tensor:
    """Share of the energy that lies in the strongest frequency of each column (neuron).

    Σ_j max_k |c_kj|² / Σ_jk |c_kj|², from 1/m to 1, when every neuron holds one frequency only.
    Chance: the m-th harmonic number over m, 0.275 for p = 23, since the energies of one column
    are then uniform on the simplex. (Neurons of one frequency each: Gromov 2023,
    arXiv 2301.02679.)
    """
    energy = coefficients(embedding).abs().square()
    return energy.amax(0).sum() / energy.sum()


def strongest_frequency(embedding: Tensor) -> Tensor:
    """The strongest frequency, 1 … m, of each column: (d,), whole numbers."""
    return coefficients(embedding).abs().argmax(0) + 1


def orthogonality(embedding: Tensor) -> Tensor:
    """1 − |cosine| of the angle between Re c_k and Im c_k, averaged over the frequencies.

    From 0, parallel, to 1, orthogonal. Chance: 1 − √(2 / (π d)), 0.98 for d = 1024, so that a wide
    embedding begins near 1. It depends on which number is called 0 unless the frequency's ellipse
    is a circle. (A claim of the project grokking-mechanism-test for Musat 2025.)
    """
    c = coefficients(embedding)
    return 1 - torch.nn.functional.cosine_similarity(c.real, c.imag, dim=1).abs().mean()


def ellipticity(embedding: Tensor) -> Tensor:
    """1 − short / long axis of the ellipse that each frequency draws, averaged over frequencies.

    The part of frequency k runs through Re(c_k exp(iθ)), an ellipse in d dimensions with the
    singular values of [Re c_k, Im c_k] as its axes. From 0, a circle, to 1, a line; unlike
    `orthogonality` the same whichever number is called 0. Chance: √(π / (2 d)), 0.039 for
    d = 1024, for large d.
    """
    c = coefficients(embedding)
    axes = torch.linalg.svdvals(torch.stack([c.real, c.imag], dim=1))
    return 1 - (axes[:, 1] / axes[:, 0]).mean()


def plane(embedding: Tensor, k: int) -> Tensor:
    """The numbers in the plane of frequency k: (p, 2), an ellipse if there is nothing else in it.

    The plane is spanned by Re c_k and Im c_k, with the ellipse's axes as coordinates.
    """
    c = coefficients(embedding)[k - 1]
    axes = torch.linalg.svd(torch.stack([c.real, c.imag]), full_matrices=False).Vh
    return (embedding - embedding.mean(0)) @ axes.T
