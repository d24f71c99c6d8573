"""Spectra on the torus C_p □ C_p: where the energy of a function of two residues lies.

A function on the grid of pairs (a, b) modulo p is a sum of modes ω^(ka + lb), ω = exp(2πi / p),
which are the eigenvectors of the normalised Laplacian of the grid's four-neighbour graph. A
spectrum P (p, p) is the energy of each mode (k, l), summed over the function's components.

*Relabelling* both residues by a unit c, a → ca and b → cb, is a symmetry of modular addition: it
permutes the modes, the energy of (ck, cl) going to (k, l), and changes nothing in the network. A
measure that it changes depends on how the residues are written down. Entropy, participation,
largest shares and the diagonal fraction stay; the low fraction and the Laplacian energy do not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lab.bench.errors import UserError


def centred(grid: Tensor) -> Tensor:
    """A function (p, p, C) less its mean over the components and its mean over the grid."""
    grid = grid - grid.mean(2, keepdim=True)
    return grid - grid.mean((0, 1), keepdim=True)


def spectrum(grid: Tensor) -> Tensor:
    """Energy (p, p) of each mode (k, l) of a function (p, p, C), over all C components.

    The transform is unitary, so that the energies sum to the function's sum of squares.
    """
    return torch.fft.fft2(grid, dim=(0, 1), norm="ortho").abs().square().sum(2)


def eigenvalues(p: int) -> Tensor:
    """Eigenvalues (p, p) of the normalised Laplacian, 1 − ½(cos 2πk/p + cos 2πl/p), float64."""
    cosines = torch.cos(2 * torch.pi * torch.arange(p, dtype=torch.float64) / p)
    return 1 - (cosines[:, None] + cosines) / 2


def low_band(p: int, band: str, value: float, include_zero: bool) -> Tensor:
    """Mask (p, p) of the modes that count as low.

    Modes of one eigenvalue are taken together, all or none, since nothing orders them: a band
    asked for by number holds at least so many.

    Args:
        p: side of the torus.
        band: "fraction", the share `value` of the p² − 1 non-constant modes with the smallest
            eigenvalues; "count", that many of them; "cutoff", those of eigenvalue ≤ `value`.
        value: see `band`.
        include_zero: whether the constant mode belongs to the band too.

    Raises:
        UserError: if the value is out of the band's range, or p too small for a mode in it.
    """
    modes = p * p - 1
    most = {"fraction": 1.0, "count": modes, "cutoff": 2.0}[band]
    if not 0 < value <= most or (band == "count" and value != int(value)):
        takes = {
            "fraction": "a share above 0 and of at most 1",
            "count": f"a whole number from 1 to the {modes} modes of --p {p}",
            "cutoff": "an eigenvalue above 0 and of at most 2",
        }[band]
        raise UserError(f"--band_value with --band {band} takes {takes}, got {value:g}")
    levels = eigenvalues(p)
    ascending = levels.flatten().sort().values[1:]
    if band == "cutoff":
        edge = value
    else:
        number = int(value * modes + 1e-9) if band == "fraction" else int(value)
        edge = float(ascending[number - 1]) if number else 0.0
    if edge < ascending[0]:
        raise UserError(
            f"--p {p} is too small for --band {band} --band_value {value:g}: no mode is in the "
            f"band; the lowest of the {modes} has eigenvalue {ascending[0]:.3g}"
        )
    low = levels <= edge * (1 + 1e-9)  # rounding must not divide modes of one eigenvalue
    low[0, 0] = include_zero
    return low


def relabelled(band: Tensor, units: Tensor) -> Tensor:
    """For each unit c in `units` (n,) the modes (n, p, p) that a → ca, b → cb brings into `band`.

    What a function has in them is what the relabelled function has in `band` (p, p).
    """
    p = len(band)
    inverses = torch.tensor([pow(int(c), -1, p) for c in units], device=band.device)
    to = inverses[:, None] * torch.arange(p, device=band.device) % p  # (n, p)
    return band[to[:, :, None], to[:, None, :]]


def every_relabelling(band: Tensor) -> Tensor:
    """`relabelled` by 1, 2, … (p − 1) / 2: c and −c relabel alike, functions being real.

    Args:
        band: (p, p), p a prime.
    """
    return relabelled(band, torch.arange(1, max(len(band) // 2, 1) + 1))


def low_fractions(grid: Tensor, low: Tensor) -> Tensor:
    """Share (C,) of the energy of each component of a function (p, p, C) in the modes `low` (p, p).

    Their mean, weighted by the components' energies, is the low fraction of the whole function.
    """
    energies = torch.fft.fft2(grid, dim=(0, 1), norm="ortho").abs().square().flatten(0, 1)
    total = energies.sum(0)
    of_low = energies[low.flatten().to(grid.device)].sum(0)
    return torch.where(total > 0, of_low / total.where(total > 0, 1.0), 0.0)


def shares(energies: Tensor) -> Tensor:
    """Energies (p, p) over their sum; all zero where there is none."""
    total = energies.sum()
    return torch.where(total > 0, energies / total.where(total > 0, 1.0), 0.0)


def spectral_entropy(share: Tensor) -> Tensor:
    """Entropy of the shares (p, p) over that of equal shares, log p²: 0 for a single mode, to 1."""
    return torch.special.entr(share).sum() / math.log(share.numel())


def inverse_participation(share: Tensor) -> Tensor:
    """Σ share²: 1 for a single mode, 1 / n for equal shares of n modes."""
    return share.square().sum()


def top_share(share: Tensor, modes: int = 10) -> Tensor:
    """Share of the strongest modes; a real function has them in pairs (k, l) and (−k, −l)."""
    return share.flatten().topk(min(modes, share.numel())).values.sum()


def diagonal_fraction(share: Tensor) -> Tensor:
    """Share of the modes (k, k): of the part that is a function of a + b."""
    return share.diagonal().sum()


def signatures(share: Tensor, bands: Tensor, drawn: int | Tensor) -> dict[str, Tensor]:
    """Every spectral signature of the shares (p, p), by the name of its column.

    Args:
        share: of each mode.
        bands: (n, p²), the modes of `every_relabelling`, the identity first, as numbers 0 and 1.
        drawn: index of the relabelling that is shown alone.
    """
    low_fraction = bands @ share.flatten()
    return {
        "low_fraction": low_fraction[0],
        "low_fraction_relabelled": low_fraction[drawn],
        "low_fraction_least": low_fraction.min(),
        "low_fraction_most": low_fraction.max(),
        "laplacian_energy": (eigenvalues(len(share)).to(share) * share).sum(),
        "spectral_entropy": spectral_entropy(share),
        "inverse_participation": inverse_participation(share),
        "top10_share": top_share(share, 10),
        "diagonal_fraction": diagonal_fraction(share),
    }


def penalty(logits: Tensor, graph: Tensor | str, form: str) -> Tensor:
    """The Laplacian energy of logits (p, p, p) on a graph of the pairs, a scalar.

    Args:
        logits: of all pairs, the classes last.
        graph: "torus", "complete", or places (p²,) of a permuted torus.
        form: "mean" over pairs and classes, or "quotient" by that of the logits' squares.
    """
    if isinstance(graph, str) and graph == "complete":
        return complete_graph_energy(logits)
    energy = laplacian_energy(logits, None if isinstance(graph, str) else graph)
    return energy / centred(logits).square().mean() if form == "quotient" else energy


def laplacian_energy(grid: Tensor, places: Tensor | None = None) -> Tensor:
    """Mean over pairs and components of f · Lf, where f is (p, p, C) less its components' mean.

    L is the normalised Laplacian of the torus, so that the energy is a quarter of the mean squared
    differences over its edges, in squared units of `grid`: Σ eigenvalue · P / (p² C). Value and
    gradient come from rolled grids, without a transform.

    Args:
        grid: (p, p, C).
        places: (p²,), a permutation of the pairs: the pair that stands at each place of the torus.

    Returns:
        a scalar, differentiable in `grid`.
    """
    grid = grid - grid.mean(2, keepdim=True)
    if places is not None:
        grid = grid.flatten(0, 1)[places].view_as(grid)
    across, along = (grid - grid.roll(1, axis) for axis in (0, 1))
    return (across.square().mean() + along.square().mean()) / 4


def complete_graph_energy(grid: Tensor) -> Tensor:
    """As `laplacian_energy`, on the complete graph: no pair is nearer to one than to another.

    Its normalised Laplacian has one eigenvalue, n / (n − 1) with n = p², for all modes but the
    constant one, so that the energy is the variance over the pairs, as of a sample, of the
    components less their mean.
    """
    return (grid - grid.mean(2, keepdim=True)).flatten(0, 1).var(0).mean()
