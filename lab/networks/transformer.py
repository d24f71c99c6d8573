"""The one-layer transformer of Nanda et al. 2023 (arXiv 2301.05217), in plain operations."""

from __future__ import annotations

import torch
from torch import Tensor


class OneLayerTransformer(torch.nn.Module):
    """Embeddings, one causal attention layer, one ReLU block, unembedding, joined by residual sums.

    As in Nanda et al.'s code: no layer norm, no tied embeddings, scores divided by √(d_model /
    heads); biases in the MLP only, which start at zero; weights N(0, 1/d_model), those of the
    unembedding N(0, 1/outputs). Attention is written out, since torch's fused one cannot be
    differentiated twice on a CPU, as the Jacobian regulariser must.

    A model for `utils.py` is `lambda x: transformer.from_embeddings(x).flatten(1)` at the points
    x = `transformer.embed(tokens)`.

    Args:
        vocabulary: number of different tokens.
        positions: longest sequence, in tokens.
        outputs: logits of one position.
        d_model: width of the residual stream, a multiple of `heads`.
        heads: attention heads, of d_model / heads dimensions each.
        d_mlp: hidden units of the MLP.
        generator: source of the initial weights, on the CPU; torch's global one when None.
        init_scale: factor on every initial weight.

    Raises:
        ValueError: if `heads` does not divide `d_model`.
    """

    def __init__(
        self,
        vocabulary: int,
        positions: int,
        outputs: int,
        d_model: int = 128,
        heads: int = 4,
        d_mlp: int = 512,
        generator: torch.Generator | None = None,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if d_model % heads:
            raise ValueError(f"heads must divide d_model, got {heads} heads of {d_model}")

        def weights(rows: int, columns: int, fan: int = d_model) -> torch.nn.Parameter:
            drawn = torch.randn(rows, columns, generator=generator)
            return torch.nn.Parameter(drawn * (init_scale * fan**-0.5))

        self.heads = heads
        self.token_embedding = weights(vocabulary, d_model)
        self.position_embedding = weights(positions, d_model)
        self.queries = weights(d_model, d_model)  # rows: head by head
        self.keys = weights(d_model, d_model)
        self.values = weights(d_model, d_model)
        self.mixing = weights(d_model, d_model)  # of the heads' results, back into the stream
        self.mlp_in = weights(d_mlp, d_model)
        self.mlp_in_bias = torch.nn.Parameter(torch.zeros(d_mlp))
        self.mlp_out = weights(d_model, d_mlp)
        self.mlp_out_bias = torch.nn.Parameter(torch.zeros(d_model))
        self.unembedding = weights(outputs, d_model, fan=outputs)

    def forward(self, tokens: Tensor, last: int = 1) -> Tensor:
        """Logits (B, last, outputs) of the last positions of `tokens` (B, T), whole numbers."""
        return self.from_embeddings(self.embed(tokens), last)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings (B, T, d_model) of `tokens` (B, T), without the positions'."""
        return torch.nn.functional.embedding(tokens, self.token_embedding)

    def from_embeddings(self, x: Tensor, last: int = 1) -> Tensor:
        """Logits (B, last, outputs) of the last positions from token embeddings.

        Other positions enter through their keys and values only, so that nothing else is
        computed for them.

        Args:
            x: (B, T, d_model) token embeddings, to which the positions' are added.
            last: number of positions at the end, from 1 to T.
        """
        x = x + self.position_embedding[: x.shape[1]]
        end = x[:, -last:]
        query = self._split(end @ self.queries.T)  # (B, heads, last, d_head)
        key, value = self._split(x @ self.keys.T), self._split(x @ self.values.T)
        scores = query @ key.mT * key.shape[-1] ** -0.5  # (B, heads, last, T)
        if last > 1:  # the last position sees all
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device)
            scores = scores.masked_fill(later.triu(x.shape[1] - last + 1), -torch.inf)
        result = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        return self._unembedded((result @ self.mixing.T).add_(end))

    def _unembedded(self, end: Tensor) -> Tensor:
        """Logits (…, outputs) of the stream (…, d_model) after attention."""
        # In place where a product is new, since fetching memory costs as much as an addition.
        hidden = (end @ self.mlp_in.T).add_(self.mlp_in_bias).relu_()
        return (hidden @ self.mlp_out.T).add_(end).add_(self.mlp_out_bias) @ self.unembedding.T

    def _split(self, x: Tensor) -> Tensor:  # (B, T, d_model) → (B, heads, T, d_head)
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
