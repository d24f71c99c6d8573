"""The paper's statements about centroids, each against autograd."""

import torch
from torch import nn

from utils import Centroids, jacobian

torch.manual_seed(0)
D, H, C = 6, 20, 3
W1 = torch.randn(H, D, dtype=torch.float64)
W2 = torch.randn(C, H, dtype=torch.float64)
X = torch.randn(10, D, dtype=torch.float64)


def network(x):
    return torch.relu(x @ W1.T) @ W2.T


def test_theorem_4_centroid_is_the_sum_of_the_jacobians_rows():
    deep = nn.Sequential(
        *(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, H), nn.LeakyReLU(0.1), nn.Linear(H, C))
    ).double()
    found = Centroids(deep)(X).centroids
    rows = torch.func.vmap(torch.func.jacrev(lambda x: deep(x[None])[0]))(X)
    torch.testing.assert_close(found, rows.sum(1).detach())
    # Theorem 13's composition: the centroid of the last layer, carried back layer by layer.
    first, _, second, _, third = deep
    for x, centroid in zip(X, found, strict=True):
        hidden = first(x)
        slopes = torch.where(second(hidden.relu()) > 0, 1.0, 0.1)
        carried = second.weight.T @ (slopes * (third.weight.T @ torch.ones(C).double()))
        carried = first.weight.T @ ((hidden > 0) * carried)
        torch.testing.assert_close(centroid, carried.detach())


def test_proposition_6_jacobian_aligned_is_centroid_aligned():
    c = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    for x in X:
        aligned = Centroids(lambda z, x=x: torch.outer(z @ x, c))(x[None])
        torch.testing.assert_close(aligned.centroids[0], c.sum() * x)
        torch.testing.assert_close(aligned.alignments[0], torch.ones(()).double())
        opposed = Centroids(lambda z, x=x: torch.outer(z @ x, -c))(x[None])
        torch.testing.assert_close(opposed.alignments[0], -torch.ones(()).double())
    # The converse fails, as the paper says: rows that sum to x need not be multiples of x.
    x = X[0]
    rows = torch.stack([x + X[1], -X[1], torch.zeros(D).double()])
    weaker = Centroids(lambda z: z @ rows.T)(x[None])
    torch.testing.assert_close(weaker.alignments[0], torch.ones(()).double())
    assert torch.linalg.matrix_rank(jacobian(lambda z: z @ rows.T, x[None])[0]) == 2


def test_lemma_7_centroid_of_a_two_layer_network():
    found = Centroids(network)(X).centroids
    for x, centroid in zip(X, found, strict=True):
        q = torch.diag((W1 @ x > 0).double())
        torch.testing.assert_close(centroid, (W2 @ q @ W1).T @ torch.ones(C).double())


def test_inner_product_is_the_sum_of_outputs_without_biases():
    # Positive homogeneity: f(x) = J x, so that ⟨x, μ_x⟩ = 1ᵀ f(x); a bias breaks it.
    torch.testing.assert_close(Centroids(network)(X).inner_products, network(X).sum(1))
    biased = Centroids(lambda x: torch.relu(x @ W1.T + 1.0) @ W2.T)(X).inner_products
    assert (biased - torch.relu(X @ W1.T + 1.0).mm(W2.T).sum(1)).abs().min() > 1e-3
