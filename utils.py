"""GrokAlign in one file: regularise input Jacobians, follow their alignment with the data.

The method of *GrokAlign: Geometric Characterisation and Acceleration of Grokking* (Walker,
Humayun, Balestriero, Baraniuk, arXiv 2506.12284). Needs torch only; copy it into your project.

    regulariser = JacobianRegulariser(model)
    outputs, jacobian_norm = regulariser.outputs_and_norm(x)        # one forward pass for both
    (loss_fn(outputs, y) + 1e-3 * jacobian_norm).backward()

    Centroids(model)(x).alignments.mean()      # rises when the network groks
    PC1(model)(x).mean()                       # 1 when every Jacobian has rank one

A model is any callable `(B, *input) -> (B, C)` or `(B,)`, a module or a function, that treats the
B points one by one. Its outputs are logits: behind a softmax they have a constant sum, so that the
centroid is zero and its alignment nothing but rounding. Common to everything in this file:

- the caller's `x`, its `requires_grad` and the parameters' `.grad` are left as they were. An `x`
  that is a leaf is data and is cut off; an `x` that comes out of a graph (token embeddings, say)
  stays connected to it where the result is differentiable;
- `batch_size` points are differentiated at once, all of them when None;
- it works under `torch.no_grad()` and `torch.inference_mode()`, on the device of `x`;
- it raises `ValueError` when `x` is no floating-point tensor or is empty, when the output
  is not one tensor (B, C) or (B,) or does not depend on `x`, and when points are coupled: then
  no row of the output belongs to one point alone. Batch normalisation in training mode is known by
  its type. Other coupling is found the first time that several points are differentiated at once:
  one more backward pass, from half of them, must not reach the others. Models without a double
  backward, such as compiled ones, are refused then as well; `check=False` leaves both out. What no
  check can see is a custom autograd function whose backward itself leaves the graph;
- it warns when dropout makes a metric random, unless a lambda hides the module. In a regularised
  step outputs and norm share a mask.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["PC1", "CentroidMetrics", "Centroids", "JacobianRegulariser", "jacobian"]

Model = Callable[[Tensor], Tensor]

# Where modules keep the share that they drop: dropout in `p`, attention in `dropout`, and these in
_RATES = {"StochasticDepth": "p", "DropPath": "drop_prob"}
_UNRELATED = "the output does not depend on x by differentiable operations"


def jacobian(
    model: Model, x: Tensor, *, batch_size: int | None = None, check: bool = True
) -> Tensor:
    """Jacobians of the outputs with respect to the flattened input, detached.

    C vector-Jacobian products, each over the whole batch.

    Args:
        model: (B, *input) -> (B, C) or (B,).
        x: (B, *input), floating point.
        batch_size: points differentiated at once; all of them when None.
        check: whether to make sure that the model treats its points one by one.

    Returns:
        (B, C, D), where D is the number of elements of one input and C = 1 for a (B,) output.

    Raises:
        ValueError: as the head of this file says.
    """
    chunks = []
    for chunk in _chunks(x, batch_size):
        with _recording():
            leaf, outputs = _forward(model, chunk, check)
            outputs = outputs.reshape(len(outputs), -1)
            basis = torch.eye(outputs.shape[1]).to(outputs)
            rows = [
                _vjp(outputs, leaf, v.expand_as(outputs), keep=c + 1 < len(basis)).flatten(1)
                for c, v in enumerate(basis)
            ]
        chunks.append(torch.stack(rows, dim=1))
        check = check and len(chunk) < 2
    return torch.cat(chunks)


class _Differentiation:
    def __init__(self, model: Model, batch_size: int | None = None, check: bool = True) -> None:
        _require_count("batch_size", batch_size)
        self.model = model
        self.batch_size = batch_size
        self.check = check  # until it is done


class JacobianRegulariser(_Differentiation):
    """GrokAlign's term: the mean over the batch of the Frobenius norm of the input Jacobian.

    The norm is estimated by random projections (Hoffman, Roberts and Yaida 2019,
    arXiv 1908.02729): ‖J‖_F² ≈ (C / k) Σ_i ‖v_iᵀ J‖² with k orthonormal directions v_i, drawn
    uniformly and anew for each point and each call. The estimate of ‖J‖_F² is unbiased; with the
    eigenvalues λ of J Jᵀ and κ = Σλ² / (Σλ)² its relative variance is

        2 (C κ − 1) / ((C + 2) k) · (C − k) / (C − 1),

    zero when k = C. Its root, the norm, is biased low, by about an eighth of that variance: most
    for a Jacobian of rank one (κ = 1), where a single projection in C = 10 gives 0.82 of the norm.

    Fused attention has no double backward, so that attention runs by `SDPBackend.MATH`. If it is
    checkpointed, `backward` runs it again, and has to be under `sdpa_kernel(SDPBackend.MATH)` too.

    Args:
        model: (B, *input) -> (B, C) or (B,).
        num_projections: k, from 1 to C; None for the exact norm (C vector-Jacobian products).
        squared: average ‖J‖_F² instead of ‖J‖_F; unbiased for every k.
        generator: source of the projections; torch's global one when None.
        batch_size: points differentiated at once, which bounds memory where no gradients are
            recorded; elsewhere the graph of every chunk is kept until `backward`.
        check: whether the first call makes sure that the model treats its points one by one and
            can be differentiated twice.

    Raises:
        ValueError: if `num_projections` or `batch_size` is no whole number of at least 1; at the
            first call if `num_projections` exceeds C or the model cannot be differentiated twice;
            and as the head of this file says.
    """

    def __init__(
        self,
        model: Model,
        num_projections: int | None = 1,
        squared: bool = False,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        check: bool = True,
    ) -> None:
        _require_count("num_projections", num_projections)
        super().__init__(model, batch_size, check)
        self.num_projections = num_projections
        self.squared = squared
        self.generator = generator

    def __call__(self, x: Tensor) -> Tensor:
        """Mean norm over `x` (B, *input): a scalar, differentiable in the model's parameters."""
        return self.outputs_and_norm(x)[1]

    def outputs_and_norm(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The model's outputs, as it returned them, and the mean norm, from one forward pass.

        Both are differentiable in the parameters unless gradients are switched off.

        Args:
            x: (B, *input), floating point.

        Returns:
            outputs (B, C) or (B,), and the scalar mean norm (or mean squared norm).
        """
        differentiable = torch.is_grad_enabled()
        outputs, norms = [], []
        for chunk in _chunks(x, self.batch_size):
            with _recording(), sdpa_kernel(SDPBackend.MATH) if differentiable else nullcontext():
                leaf, output = _forward(self.model, chunk, self.check, differentiable)
                norms.append(self._norms(leaf, output, differentiable))
            outputs.append(output if differentiable else output.detach())
            if self.check and _operations(norms[-1], leaf) & {"NotImplemented", "Error"}:
                raise ValueError(
                    "the model has an operation without a double backward, such as nn.Hardsigmoid "
                    "or a function that is once_differentiable"
                )
            self.check = self.check and len(chunk) < 2
        return torch.cat(outputs), torch.cat(norms).mean()

    def _norms(self, leaf: Tensor, outputs: Tensor, differentiable: bool) -> Tensor:
        """(B,) norms of the Jacobians of `outputs` (B, C) or (B,), squared if asked for."""
        outputs = outputs.reshape(len(outputs), -1)
        directions = self.directions(outputs.detach())
        if self.check and differentiable:  # else once_differentiable functions say nothing
            directions.requires_grad_()
        projected = []
        for i, v in enumerate(directions):
            keep = differentiable or i + 1 < len(directions)
            projected.append(_vjp(outputs, leaf, v, keep, differentiable).flatten(1))
        # vector_norm has a zero gradient at a zero Jacobian, where the root of a sum has none.
        rows = torch.stack(projected)
        norms: Tensor = torch.linalg.vector_norm(rows, dim=(0, 2), dtype=_precision(rows))
        norms = norms * (outputs.shape[1] / len(directions)) ** 0.5
        return norms.square() if self.squared else norms

    def directions(self, outputs: Tensor) -> Tensor:
        """Orthonormal directions (k, B, C), drawn anew, for outputs (B, C).

        Raises:
            ValueError: if k exceeds C.
        """
        batch, classes = outputs.shape
        k = classes if self.num_projections is None else self.num_projections
        if k > classes:
            raise ValueError(
                f"num_projections = {k} exceeds the number of outputs, "
                f"C = {classes} of the output {tuple(outputs.shape)}"
            )
        if k == classes:  # any orthonormal basis gives the exact norm
            identity = torch.eye(classes, dtype=outputs.dtype, device=outputs.device)
            return identity[:, None].expand(k, batch, classes)
        device = outputs.device if self.generator is None else self.generator.device
        gaussian = torch.randn(
            batch, classes, k, generator=self.generator, dtype=_precision(outputs), device=device
        ).to(outputs.device)
        normalised = torch.nn.functional.normalize
        basis: Tensor = normalised(gaussian, dim=1) if k == 1 else torch.linalg.qr(gaussian).Q
        return basis.to(outputs.dtype).permute(2, 0, 1)


class CentroidMetrics(NamedTuple):
    """What `Centroids` returns; every field is detached and has one entry per point."""

    centroids: Tensor
    """(B, *input), μ_x = J_x(f)ᵀ 1."""
    inner_products: Tensor
    """(B,), ⟨x, μ_x⟩."""
    norms: Tensor
    """(B,), ‖μ_x‖₂."""
    alignments: Tensor
    """(B,), cosine of the angle between x and μ_x, in [−1, 1]; 0 where either of them is zero."""


class Centroids(_Differentiation):
    """Centroids μ_x = J_x(f)ᵀ 1 (Theorem 4) and their alignment with the points (Definition 5).

    One vector-Jacobian product. For a network without biases and with positively homogeneous
    activations ⟨x, μ_x⟩ = 1ᵀ f(x).

    Args:
        model: (B, *input) -> (B, C) or (B,).
        batch_size: points differentiated at once; all of them when None.
        check: whether the first call makes sure that the model treats its points one by one.

    Raises:
        ValueError: as the head of this file says.
    """

    def __call__(self, x: Tensor) -> CentroidMetrics:
        """Centroid metrics of the points `x` (B, *input), floating point."""
        chunks = []
        for chunk in _chunks(x, self.batch_size):
            with _recording():
                leaf, outputs = _forward(self.model, chunk, self.check)
                chunks.append(_vjp(outputs, leaf, torch.ones_like(outputs)))
            self.check = self.check and len(chunk) < 2
        centroids = torch.cat(chunks)
        points, flat = (t.detach().flatten(1).to(_precision(t)) for t in (x, centroids))
        return CentroidMetrics(
            centroids,
            (points * flat).sum(1),
            torch.linalg.vector_norm(flat, dim=1),
            torch.nn.functional.cosine_similarity(_to_size_one(points), _to_size_one(flat), dim=1),
        )


class PC1(_Differentiation):
    """Explained variance of the first principal component of the Jacobian, σ₁² / Σσ² (Figure 2).

    The σ are the singular values of J_x(f), from the eigenvalues of its Gram matrix in float64
    (in float32, 1 − PC1 means nothing below 1e-6). The value lies in [1 / min(C, D), 1], and is 1
    for a Jacobian of rank one. A Jacobian that is zero (a point at which every unit is dead) has
    no direction: its value is 0, which no other Jacobian attains, so that it can be told apart.

    Args:
        model: (B, *input) -> (B, C) or (B,).
        batch_size: points differentiated at once; all of them when None.
        check: whether the first call makes sure that the model treats its points one by one.

    Raises:
        ValueError: if a Jacobian is not finite, and as the head of this file says.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Explained variances (B,), float64, of the points `x` (B, *input), floating point."""
        return torch.cat([self._explained(chunk) for chunk in _chunks(x, self.batch_size)])

    def _explained(self, x: Tensor) -> Tensor:
        rows = jacobian(self.model, x, check=self.check)
        self.check = self.check and len(x) < 2
        if rows.device.type == "mps":  # has no float64
            rows = rows.cpu()
        rows = rows.double()
        if not rows.isfinite().all():
            raise ValueError("the Jacobian has entries that are not finite (NaN or infinite)")
        if rows.shape[1] > rows.shape[2]:
            rows = rows.mT
        # Scaled first: the square of a Jacobian of 1e-170 would vanish.
        scale = rows.abs().amax(dim=(1, 2), keepdim=True)
        rows = rows / torch.where(scale > 0, scale, 1.0)
        variances = torch.linalg.eigvalsh(rows @ rows.mT).clamp(min=0)
        total = variances.sum(1)
        return torch.where(total > 0, variances[:, -1] / total.where(total > 0, 1.0), 0.0)


def _require_count(name: str, value: int | None) -> None:
    if value is not None and (not isinstance(value, Integral) or value < 1):
        got = type(value).__name__ if isinstance(value, Tensor) else value
        raise ValueError(f"{name} must be a whole number of at least 1 or None, got {got}")


def _chunks(x: Tensor, batch_size: int | None) -> Iterator[Tensor]:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a floating-point tensor to be differentiated, got {kind}")
    if x.ndim < 2 or x.numel() == 0:
        form = "(B, *input), not empty, and (B, 1) where points are numbers"
        raise ValueError(f"x must be {form}, got {tuple(x.shape)}")
    _require_count("batch_size", batch_size)
    x = x.detach() if x.is_leaf else x  # parts of a leaf are none themselves
    yield from torch.split(x, int(batch_size or len(x)))


@contextmanager
def _recording() -> Iterator[None]:
    """Records gradients whatever the caller has switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _to_size_one(vectors: Tensor) -> Tensor:
    """Vectors (B, D) over their largest entries, since small ones have squares that vanish."""
    largest = vectors.abs().amax(dim=1, keepdim=True)
    return vectors / largest.clamp_min(torch.finfo(vectors.dtype).tiny)


def _precision(values: Tensor) -> torch.dtype:
    """The type in which values are added up: float32 for half precision, else their own."""
    return torch.promote_types(values.dtype, torch.float32)


def _forward(model: Model, x: Tensor, check: bool, graph: bool = False) -> tuple[Tensor, Tensor]:
    """The tensor to differentiate by, and the model's outputs as a function of it."""
    owner = model.func if isinstance(model, partial) else model
    owner = getattr(owner, "__self__", owner)  # of a method, which need not use all of it
    for module in owner.modules() if isinstance(owner, torch.nn.Module) else ():
        kind = type(module).__name__
        normalises = owner is model and isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        if normalises and (module.training or module.running_mean is None):
            raise ValueError(
                f"{kind} normalises with the statistics of the batch, which couples its points; "
                "call model.eval() first, or use another normalisation"
            )
        rate = getattr(module, _RATES.get(kind, "p" if "Dropout" in kind else "dropout"), 0)
        if module.training and not graph and isinstance(rate, float) and rate > 0:
            # Python shows it once, since text and line stay the same.
            warnings.warn("metrics are random while dropout is on; call model.eval()", stacklevel=1)
    leaf = x if graph and x.grad_fn is not None else x.detach().clone().requires_grad_()
    outputs = model(leaf.clone())  # a copy, since the model may begin with an in-place operation
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"the model must return a tensor, but returns a {type(outputs).__name__}; wrap it in a "
            'function that picks one: lambda x: model(x)["logits"], or lambda x: model(x)[0]'
        )
    if outputs.is_complex():
        raise ValueError("the model's outputs are complex; give their real and imaginary parts")
    if outputs.ndim not in (1, 2) or len(outputs) != len(x) or outputs.numel() == 0:
        raise ValueError(
            f"the model must map (B, *input) to (B, C) or (B,), but maps "
            f"{tuple(x.shape)} to {tuple(outputs.shape)}"
        )
    if not outputs.requires_grad:
        raise ValueError(_UNRELATED)
    if check and len(x) > 1:
        _require_separate_points(leaf, outputs)
    return leaf, outputs


def _require_separate_points(leaf: Tensor, outputs: Tensor) -> None:
    if "CompiledFunctionBackward" in _operations(outputs, leaf):
        raise ValueError("torch.compile has no double backward; pass the model before compilation")
    # At random, since outputs may have a constant sum. Zeros stay zeros where nothing is mixed.
    draws = torch.Generator("cpu").manual_seed(0)
    half = torch.rand(len(outputs), generator=draws, device="cpu") < 0.5
    half[0], half[-1], half[1] = False, False, True  # which has others before and behind
    v = torch.randn(outputs.shape, generator=draws, device="cpu")
    v[~half] = 0
    reached = _vjp(outputs, leaf, v.to(outputs), keep=True).flatten(1).abs().nan_to_num(0, 0, 0)
    if reached[~half].max() > 1e-6 * reached[half].max():
        raise ValueError(
            "the model couples its points: some outputs depend on other points, as with attention "
            "of batch_first=False and batch normalisation in training mode; check=False allows it"
        )


def _operations(result: Tensor, leaf: Tensor) -> set[str]:
    """Names of the operations between `leaf` and `result`."""
    nodes: list[Any] = [result.grad_fn]
    seen: set[Any] = {None, leaf.grad_fn}
    while nodes:
        if (node := nodes.pop()) not in seen:
            seen.add(node)
            nodes.extend(n for n, _ in node.next_functions)
    return {type(node).__name__ for node in seen}


def _vjp(
    outputs: Tensor, leaf: Tensor, v: Tensor, keep: bool = False, create_graph: bool = False
) -> Tensor:
    """vᵀ J of each point, in the shape of `leaf`, for `v` in the shape of `outputs`."""
    # One sweep serves the whole batch: the gradient of Σ_b ⟨v_b, f(x_b)⟩ by x_b is v_bᵀ J_b.
    (product,) = torch.autograd.grad(
        outputs, leaf, v, retain_graph=keep, create_graph=create_graph, allow_unused=True
    )
    if product is None:
        raise ValueError(_UNRELATED)
    return product
