"""Modular arithmetic: all pairs (a, b) modulo p, their labels, a split, and two networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lab.errors import UserError
from lab.seeds import generator
from lab.transformer import OneLayerTransformer

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # modulo p
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "x2_xy_y2": lambda a, b: a * a + a * b + b * b,
}
SPLITS = ("pairs", "unordered")


class ModularTask(NamedTuple):
    """The p × p grid of pairs in the order a · p + b, and which of them train."""

    p: int
    pairs: Tensor
    """(p², 2), the operands a and b."""
    labels: Tensor
    """(p²,), a ∘ b mod p, or uniform draws for the random-label control."""
    train: Tensor
    """(n,), indices of the training pairs, ascending."""
    test: Tensor
    """(p² − n,), indices of the test pairs, ascending."""

    def unmirrored(self) -> Tensor:
        """Indices of the test pairs (a, b) of which (b, a) does not train either, ascending.

        A network with one embedding for both operands answers alike to both orders, so that a
        test pair whose mirror image trains tests symmetry, not addition.
        """
        a, b = self.pairs[self.test].T
        return self.test[~torch.isin(b * self.p + a, self.train)]


def modular_addition(
    p: int,
    train_fraction: float,
    seed: int,
    random_labels: bool = False,
    operation: str = "add",
    split: str = "pairs",
) -> ModularTask:
    """Addition, or another operation, modulo a prime p, with a training set drawn uniformly.

    Args:
        p: the modulus, a prime.
        train_fraction: share of the pairs that train, rounded to the nearest whole pair.
        seed: seed of the split, and of the labels if they are random.
        random_labels: replaces every label by a uniform draw, a task that can be memorised only.
        operation: one of `OPERATIONS`; x2_xy_y2 is a² + ab + b², as in Power et al. 2022.
        split: "pairs" draws from all p² pairs; "unordered" from the p (p + 1) / 2 sets {a, b},
            both orders of which then train or test together.

    Raises:
        UserError: if p is not a prime, or the fraction leaves no training or no test pair.
    """
    if p < 2 or any(p % divisor == 0 for divisor in range(2, int(p**0.5) + 1)):
        raise UserError(f"--p takes a prime number, got {p}")
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    drawn_from = pairs if split == "pairs" else pairs.sort(1).values
    names = drawn_from @ torch.tensor([p, 1])  # those of one name stay together
    units = names.unique()
    n = round(train_fraction * len(units))
    if not 0 < n < len(units):
        raise UserError(
            f"--train_fraction takes a share that leaves a training and a test pair of the "
            f"{len(units)}, got {train_fraction:g}"
        )
    labels = OPERATIONS[operation](*pairs.T) % p
    if random_labels:
        labels = torch.randint(0, p, (p * p,), generator=generator(seed, "random labels"))
    order = torch.randperm(len(units), generator=generator(seed, "data"))
    trains = torch.isin(names, units[order[:n]])
    return ModularTask(p, pairs, labels, trains.nonzero()[:, 0], (~trains).nonzero()[:, 0])


class ModularMLP(torch.nn.Module):
    """W₂ ReLU(s (W₁ x + b₁)) + b₂, where x is the one-hot vectors of a and b, one after the other.

    A product with one-hot vectors is a sum of two rows of W₁ᵀ, which is looked up instead. All
    weights begin uniform in ±1/√(inputs of the layer), torch's own choice for linear layers, and in
    float64.

    Args:
        p: the modulus; 2p inputs and p outputs.
        width: hidden units.
        alpha: the first layer is multiplied by s = width^(−alpha).
        draws: generator of the initial weights, on the CPU.
    """

    def __init__(self, p: int, width: int, alpha: float, draws: torch.Generator) -> None:
        super().__init__()

        def uniform(*shape: int, inputs: int) -> torch.nn.Parameter:
            values = torch.empty(shape, dtype=torch.float64)
            return torch.nn.Parameter(
                values.uniform_(-(inputs**-0.5), inputs**-0.5, generator=draws)
            )

        self.scale = width**-alpha
        self.register_buffer("offsets", torch.tensor([0, p]), persistent=False)
        self.rows = uniform(2 * p, width, inputs=2 * p)  # W₁ᵀ: p rows for a, then p for b
        self.first_bias = uniform(width, inputs=2 * p)
        self.second = uniform(p, width, inputs=width)
        self.second_bias = uniform(p, inputs=width)

    def forward(self, pairs: Tensor) -> Tensor:
        """Logits (B, p) of `pairs` (B, 2)."""
        both = pairs + self.offsets
        return self._head(torch.nn.functional.embedding_bag(both, self.rows, mode="sum"))

    def grid(self) -> Tensor:
        """Logits (p, p, p) of all pairs (a, b), the classes last."""
        of_a, of_b = self.rows.split(len(self.second))
        return self._head(of_a[:, None] + of_b)

    def _head(self, sums: Tensor) -> Tensor:  # W₁ x (…, width) → (…, p)
        hidden = ((sums + self.first_bias) * self.scale).relu()
        return torch.nn.functional.linear(hidden, self.second, self.second_bias)


class ModularMLPs:
    """Several `ModularMLP`s of one shape in one pass, by batched products.

    Their parameters become parts of one tensor each: an optimiser of any of the networks moves
    what the next pass uses. Move the networks to their device before, not after.

    Args:
        networks: R of them; they may differ in their factor s.
    """

    def __init__(self, networks: Sequence[ModularMLP]) -> None:
        self.parameters = list(zip(*(network.parameters() for network in networks), strict=True))
        self.stacked = []
        for each in self.parameters:
            stack = torch.stack([parameter.detach() for parameter in each])
            for parameter, part in zip(each, stack, strict=True):
                parameter.data = part
            self.stacked.append(stack.requires_grad_())
        scales = [network.scale for network in networks]
        self.scales = self.stacked[0].new_tensor(scales)[:, None, None]

    def __call__(self, pairs: Tensor) -> Tensor:
        """Logits (R, n, p) of `pairs` (R, n, 2), those of each network its own."""
        rows, first_bias, second, second_bias = self.stacked
        replicas, inputs, width = rows.shape
        firsts = torch.tensor([0, inputs // 2], device=pairs.device)
        firsts = firsts + inputs * torch.arange(replicas, device=pairs.device)[:, None, None]
        both = (pairs + firsts).flatten(0, 1)
        sums = torch.nn.functional.embedding_bag(both, rows.flatten(0, 1), mode="sum")
        sums = sums.view(replicas, -1, width) + first_bias[:, None]
        hidden = (sums * self.scales).relu()
        return torch.baddbmm(second_bias[:, None], hidden, second.mT)

    def backward(self, losses: Tensor) -> None:
        """Replaces every parameter's `.grad` by the derivative of its network's loss, of (R,)."""
        gradients = torch.autograd.grad(losses.sum(), self.stacked)
        for each, gradient in zip(self.parameters, gradients, strict=True):
            # Contiguous, since AdamW's fused kernel on a CPU reads it in the order of memory.
            for parameter, part in zip(each, gradient.contiguous(), strict=True):
                parameter.grad = part


class ModularTransformer(OneLayerTransformer):
    """Nanda et al.'s one-layer transformer, which reads a, b and "=" and answers at "=".

    The query is always that of "=" in its place, so that what attention has to know of a pair is a
    row of a table for each operand: its scores and its values, one a head. The logits are those
    of `OneLayerTransformer` on the tokens (a, b, p).

    Args:
        p: the modulus; p + 1 tokens and p outputs.
        d_model: width of the residual stream.
        heads: attention heads, a divisor of `d_model`.
        d_mlp: hidden units of the MLP.
        draws: generator of the initial weights, on the CPU.
    """

    def __init__(
        self, p: int, d_model: int, heads: int, d_mlp: int, draws: torch.Generator
    ) -> None:
        super().__init__(p + 1, 3, p, d_model, heads, d_mlp, draws)
        self.p = p

    def forward(self, pairs: Tensor) -> Tensor:  # type: ignore[override]
        """Logits (B, p) of `pairs` (B, 2)."""
        end, scores, values = self._tables(self._inputs())
        looked_up = torch.nn.functional.embedding  # its gradient is faster than an index's
        rows = [pairs[:, 0], self.p + pairs[:, 1]]
        return self._answer(
            end,
            [*(looked_up(row, scores) for row in rows), scores[-1:]],
            [*(looked_up(row, values) for row in rows), values[-1:]],
        )

    def outputs_and_norm(
        self, pairs: Tensor, directions: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Logits and the mean Frobenius norm of the Jacobians by the three token embeddings.

        What `JacobianRegulariser` makes of `from_embeddings`, to rounding, "=" being one of the
        three. The graph is differentiated down to what the tables give a pair only. From there
        on everything is linear: a score is the product of the token's embedding with a vector
        that all pairs share, a value that with a matrix; "=" is the query too, and the stream.

        Args:
            pairs: (B, 2).
            directions: logits (B, p) -> orthonormal (k, B, p), as
                `JacobianRegulariser.directions` draws them.

        Returns:
            logits (B, p) and the scalar mean norm, both differentiable in the parameters.
        """
        x = self._inputs()
        end, scores, values = self._tables(x)
        looked_up = torch.nn.functional.embedding
        rows = [pairs[:, 0], self.p + pairs[:, 1], torch.full_like(pairs[:, 0], 2 * self.p)]
        leaves = [
            end.expand(len(pairs), -1),
            *(looked_up(row, table) for table in (scores, values) for row in rows),
        ]
        outputs = self._answer(leaves[0], leaves[1:4], leaves[4:])

        d_head = x.shape[1] // self.heads
        queries, keys = (w.unflatten(0, (self.heads, -1)) for w in (self.queries, self.keys))
        scorers = d_head**-0.5 * ((queries @ x[-1])[:, :, None] * keys).sum(1)  # (heads, d_model)
        looked_at = [looked_up(row, x @ self.keys.T) for row in rows]
        products = []
        for v in (drawn := directions(outputs.detach())):
            by_end, *by_tables = torch.autograd.grad(outputs, leaves, v, create_graph=True)
            by_scores, by_values = by_tables[:3], by_tables[3:]
            by_query = d_head**-0.5 * sum(
                by_score.repeat_interleave(d_head, dim=1) * key
                for by_score, key in zip(by_scores, looked_at, strict=True)
            )
            products += [
                by_score @ scorers + by_value @ self.values
                for by_score, by_value in zip(by_scores, by_values, strict=True)
            ]
            products[-1] = products[-1] + by_query @ self.queries + by_end
        norms = torch.linalg.vector_norm(torch.stack(products), dim=(0, 2))
        return outputs, (self.p / len(drawn)) ** 0.5 * norms.mean()

    def grid(self) -> Tensor:
        """Logits (p, p, p) of all pairs (a, b), the classes last."""
        end, scores, values = self._tables(self._inputs())

        def broadcast(table: Tensor) -> list[Tensor]:
            of_a, of_b, of_end = table.split([self.p, self.p, 1])
            return [of_a[:, None], of_b[None], of_end[None]]

        return self._answer(end, broadcast(scores), broadcast(values))

    def _inputs(self) -> Tensor:
        """(2p + 1, d_model): every a in the first place, every b in the second, "="."""
        residues, equals = self.token_embedding.split([self.p, 1])
        first, second, third = self.position_embedding
        return torch.cat([residues + first, residues + second, equals + third])

    def _tables(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the `_inputs` x, the last row, the scores (2p + 1, heads), the values (…, d_model)."""
        query = (self.queries @ x[-1]).unflatten(0, (self.heads, -1))
        keys = (x @ self.keys.T).unflatten(1, (self.heads, -1))
        return x[-1], (keys * query).sum(2) * query.shape[1] ** -0.5, x @ self.values.T

    def _answer(self, end: Tensor, scores: list[Tensor], values: list[Tensor]) -> Tensor:
        """Logits (…, p) from the scores (…, heads) and values (…, d_model) of three positions."""
        weights = torch.stack(torch.broadcast_tensors(*scores)).softmax(0)
        d_head = end.shape[-1] // self.heads
        result = sum(
            weight.repeat_interleave(d_head, dim=-1) * value
            for weight, value in zip(weights, values, strict=True)
        )
        end = end + result @ self.mixing.T
        hidden = torch.relu(end @ self.mlp_in.T + self.mlp_in_bias)
        end = end + hidden @ self.mlp_out.T + self.mlp_out_bias
        return end @ self.unembedding.T
