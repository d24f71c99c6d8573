"""Nanda et al.'s transformer on modular pairs from tables, and the regulariser on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lab.networks.transformer import OneLayerTransformer
from utils import JacobianRegulariser


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
        generator: source of the initial weights, on the CPU.
    """

    def __init__(
        self, p: int, d_model: int, heads: int, d_mlp: int, generator: torch.Generator
    ) -> None:
        super().__init__(p + 1, 3, p, d_model, heads, d_mlp, generator)
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

    def points(self, pairs: Tensor) -> Tensor:
        """Token embeddings (B, 3, d_model) of a, b and "=", by which Jacobians are taken."""
        return self.embed(torch.nn.functional.pad(pairs, (0, 1), value=self.p))

    def from_points(self, points: Tensor) -> Tensor:
        """Logits (B, p) of the `points` (B, 3, d_model): a model for `utils.py`."""
        return self.from_embeddings(points).flatten(1)

    def outputs_and_norm(
        self, pairs: Tensor, directions: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Logits and the mean Frobenius norm of the Jacobians by the three token embeddings.

        What `JacobianRegulariser` makes of `from_points`, to rounding, "=" being one of the
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
            first, second, third = (
                by_score.repeat_interleave(d_head, dim=1) * key
                for by_score, key in zip(by_scores, looked_at, strict=True)
            )
            by_query = first.add_(second).add_(third) * d_head**-0.5
            products += [
                (by_score @ scorers).add_(by_value @ self.values)
                for by_score, by_value in zip(by_scores, by_values, strict=True)
            ]
            products[-1].add_(by_query @ self.queries).add_(by_end)
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
        first, second, third = (
            weight.repeat_interleave(end.shape[-1] // self.heads, dim=-1) * value
            for weight, value in zip(weights, values, strict=True)
        )
        result = first.add_(second).add_(third)
        return self._unembedded((result @ self.mixing.T).add_(end))


class ModularRegulariser(JacobianRegulariser):
    """`JacobianRegulariser` by the three token embeddings of a pair, for a `ModularTransformer`.

    Value and gradient are those of `JacobianRegulariser(transformer.from_points, …)` at
    `transformer.points(pairs)`, to rounding. Squared norms, chunks, and calls without gradients go
    that way.

    Args:
        transformer: the network.
        others: as for `JacobianRegulariser`.
    """

    def __init__(self, transformer: ModularTransformer, *others: Any, **named: Any) -> None:
        super().__init__(transformer.from_points, *others, **named)
        self.transformer = transformer

    def outputs_and_norm(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, p) and the scalar mean norm of the pairs `x` (B, 2)."""
        if self.squared or self.batch_size is not None or not torch.is_grad_enabled():
            return super().outputs_and_norm(self.transformer.points(x))
        return self.transformer.outputs_and_norm(x, self.directions)
