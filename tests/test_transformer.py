"""The one-layer transformer against a second, naive one, and against finite differences."""

import pytest
import torch

from lab.bench.seeds import generator
from lab.networks.transformer import OneLayerTransformer
from utils import Centroids, JacobianRegulariser, jacobian

VOCABULARY, POSITIONS, OUTPUTS = 7, 5, 6


def transformer(**changes):
    sizes = {"d_model": 12, "heads": 3, "d_mlp": 10}
    network = OneLayerTransformer(
        VOCABULARY, POSITIONS, OUTPUTS, generator=generator(0, "t"), **(sizes | changes)
    ).double()
    with torch.no_grad():  # biases start at zero, where a forgotten one would not be seen
        network.mlp_in_bias.normal_(generator=generator(0, "in"))
        network.mlp_out_bias.normal_(generator=generator(0, "out"))
    return network


def sequences(batch=4, length=POSITIONS):
    return torch.randint(0, VOCABULARY, (batch, length), generator=generator(0, "s"))


def naive(network, tokens):
    """Logits of every position, one sequence, head and query at a time, from the definition."""
    d_head = network.token_embedding.shape[1] // network.heads
    everything = []
    for sequence in tokens:
        x = torch.stack(
            [
                network.token_embedding[t] + network.position_embedding[i]
                for i, t in enumerate(sequence.tolist())
            ]
        )
        logits = []
        for i in range(len(x)):
            seen = x[: i + 1]
            attended = torch.zeros_like(x[i])
            for head in range(network.heads):
                rows = slice(head * d_head, (head + 1) * d_head)
                query = network.queries[rows] @ x[i]
                weights = torch.stack([query @ (network.keys[rows] @ other) for other in seen])
                weights = (weights / d_head**0.5).exp()
                weights = weights / weights.sum()
                result = sum(
                    w * (network.values[rows] @ o) for w, o in zip(weights, seen, strict=True)
                )
                attended = attended + network.mixing[:, rows] @ result
            stream = x[i] + attended
            hidden = (network.mlp_in @ stream + network.mlp_in_bias).clamp(min=0)
            stream = stream + network.mlp_out @ hidden + network.mlp_out_bias
            logits.append(network.unembedding @ stream)
        everything.append(torch.stack(logits))
    return torch.stack(everything)


@pytest.mark.parametrize("length", [POSITIONS, 3])
@pytest.mark.parametrize("last", [1, 2, 3])
def test_the_last_positions_agree_with_all_positions_computed_naively(length, last):
    network, tokens = transformer(), sequences(length=length)
    expected = naive(network, tokens)[:, -last:]
    for logits in (network(tokens, last), network.from_embeddings(network.embed(tokens), last)):
        assert logits.shape == (4, last, OUTPUTS)
        assert (logits - expected).abs().max() < 1e-12


def test_a_position_is_blind_to_later_ones():
    tokens = sequences()
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % VOCABULARY
    network = transformer()
    difference = network(tokens, 2) - network(changed, 2)
    assert difference[:, 0].abs().max() == 0
    assert difference[:, 1].abs().max() > 1e-3


@pytest.mark.parametrize("last", [1, 3])
def test_double_backward_agrees_with_a_finite_difference(last):
    network, tokens = transformer(), sequences()
    points = network.embed(tokens).detach()
    regulariser = JacobianRegulariser(
        lambda x: network.from_embeddings(x, last).flatten(1), num_projections=None
    )
    norm = regulariser(points)
    exact = jacobian(regulariser.model, points).flatten(1).norm(dim=1).mean()
    assert norm.item() == pytest.approx(exact.item(), rel=1e-12)
    # No Jacobian depends on the last bias, nor on the embedding, of which the points are cut off.
    apart = ("token_embedding", "mlp_out_bias")
    parameters = [p for name, p in network.named_parameters() if name not in apart]
    gradients = torch.autograd.grad(norm, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=generator(1, "d"), dtype=torch.float64)
        values = []
        for shift in (1e-6, -2e-6):
            with torch.no_grad():
                parameter.add_(direction, alpha=shift)
            values.append(regulariser(points).item())
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-6)
        slope = (values[0] - values[1]) / 2e-6
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_the_embedding_is_trained_through_the_regulariser():
    network, tokens = transformer(), sequences()
    regulariser = JacobianRegulariser(lambda x: network.from_embeddings(x).flatten(1))
    outputs, norm = regulariser.outputs_and_norm(network.embed(tokens))
    torch.testing.assert_close(outputs, network(tokens)[:, 0])
    norm.backward()
    used = sorted(set(tokens.flatten().tolist()))
    assert (network.token_embedding.grad[used].norm(dim=1) > 0).all()


def test_the_centroid_is_the_gradient_of_the_summed_logits():
    network, tokens = transformer(), sequences()
    points = network.embed(tokens).detach().requires_grad_()
    (expected,) = torch.autograd.grad(network.from_embeddings(points, 2).sum(), points)
    found = Centroids(lambda x: network.from_embeddings(x, 2).flatten(1))(points)
    torch.testing.assert_close(found.centroids, expected)


def test_initial_weights_have_the_stated_spread_and_come_from_the_generator():
    def network(seed, scale):
        return OneLayerTransformer(500, 400, 300, generator=generator(seed), init_scale=scale)

    first = dict(network(0, 1.0).named_parameters())
    assert all(torch.equal(first[n], p) for n, p in network(0, 1.0).named_parameters())
    assert not torch.equal(first["keys"], dict(network(1, 1.0).named_parameters())["keys"])
    for name, parameter in network(0, 3.0).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            torch.testing.assert_close(parameter, 3 * first[name])
            variance = 9 / 300 if name == "unembedding" else 9 / 128
            assert parameter.square().mean().item() == pytest.approx(variance, rel=0.05)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="heads must divide d_model"):
        transformer(heads=5)
