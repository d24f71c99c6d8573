"""The paper's statements, each against autograd, a finite difference or a minimisation."""

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from lab.measures.kernels import kernel_row
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


# Section 2: what an aligned Jacobian is good for


def constrained_optimum(loss, x, alpha):
    """Projected gradient descent over A (C, D) with ‖A‖_F² ≤ α, from a random start."""
    a = torch.randn(C, D, dtype=torch.float64, requires_grad=True)
    for _ in range(4000):
        (gradient,) = torch.autograd.grad(loss(a @ x), a)
        with torch.no_grad():
            a -= 0.05 * gradient
            a *= min(1.0, alpha**0.5 / a.norm().item())
    return a.detach()


@pytest.mark.parametrize("alpha", [0.01, 0.04])
def test_theorem_2_constrained_minimisers_are_aligned_with_the_proof_s_constants(alpha):
    x, label = X[0], 1
    others = torch.arange(C) != label
    size = x.norm()

    found = constrained_optimum(lambda f: -torch.log_softmax(f, 0)[label], x, alpha)
    a = (alpha * (C - 1) / C) ** 0.5 / size
    b = -((alpha / (C * (C - 1))) ** 0.5) / size
    expected = torch.outer(torch.where(others, b, a), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

    # For the mean-squared error only where the constraint binds: √α ‖x‖ < 1.
    assert alpha**0.5 * size < 1
    target = (~others).double()
    found = constrained_optimum(lambda f: (f - target).square().sum(), x, alpha)
    expected = torch.outer(target * alpha**0.5 / size, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_theorem_3_alignment_is_the_most_robust_rank_one_map():
    x = X[0]
    c = torch.tensor([0.3, 2.0, -1.0], dtype=torch.float64)  # the class of x is 1

    def distance(v):
        """Norm of the least perturbation that brings another class up to the first, exactly."""
        gaps = (c[1] - c[[0, 2]])[:, None] * v  # f_1 − f_j = ⟨gap_j, x⟩
        return ((gaps @ x) / gaps.norm(dim=1)).min()

    torch.testing.assert_close(distance(x), x.norm())
    for v in torch.randn(200, D, dtype=torch.float64):
        v = v * x.norm() / v.norm() * (v @ x).sign()
        assert 0 < distance(v) < x.norm()
        torch.testing.assert_close(distance(v), v @ x / v.norm())
        step = -v / v.norm() * distance(v)
        assert (torch.outer(c, v) @ (x + 0.999 * step)).argmax() == 1
        assert (torch.outer(c, v) @ (x + 1.001 * step)).argmax() != 1


# Section 3 and Appendix A: centroids and the neural tangent kernel


class TwoLayer(nn.Module):
    def __init__(self, outputs, seed=0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.w1 = nn.Parameter(torch.randn(H, D, generator=draw, dtype=torch.float64) / D**0.5)
        self.w2 = nn.Parameter(torch.randn(outputs, H, generator=draw, dtype=torch.float64) / H)

    def forward(self, x):
        return torch.relu(x @ self.w1.T) @ self.w2.T

    def active(self, x):
        return (x @ self.w1.T > 0).double()


def change_of_inner_products(network, loss, eta):
    """⟨x, μ_x⟩ of all points after one update of gradient descent, less before."""
    before = Centroids(network)(X).inner_products
    gradients = torch.autograd.grad(loss(network(X)), list(network.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter -= eta * gradient
    return Centroids(network)(X).inner_products - before


def test_lemma_8_kernel_of_a_two_layer_network():
    network = TwoLayer(1)
    hidden, active = torch.relu(X @ network.w1.T), network.active(X)
    for i, x in enumerate(X):
        second = (active * active[i] * network.w2[0].square()).sum(1)
        expected = hidden @ hidden[i] + (X @ x) * second
        torch.testing.assert_close(kernel_row(network, x, X), expected.detach())


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_theorem_9_change_of_the_inner_product(scale):
    y = (torch.arange(len(X)) % 2).double()
    errors = []
    for eta in (1e-3, 1e-4):
        two_layer = TwoLayer(1)

        class Scaled(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                return scale * self.inner(x)[:, 0]

        network = Scaled(two_layer)
        m = y - torch.sigmoid(network(X)).detach()
        kernel = torch.stack([kernel_row(network, x, X) for x in X])
        expected = eta / len(X) * kernel @ m
        found = change_of_inner_products(
            network, lambda f: binary_cross_entropy_with_logits(f, y), eta
        )
        errors.append(((found - expected).norm() / expected.norm()).item())
    assert errors[1] < 1e-3
    assert errors[1] < 0.2 * errors[0]  # the formula is the first order in η


def proposition_10(network, m, eta):
    """The right-hand side, both terms, for the residuals m (B, C)."""
    hidden, active = torch.relu(X @ network.w1.T), network.active(X)
    ones = network.w2.T @ torch.ones(network.w2.shape[0]).double()  # W₂ᵀ 1, (H,)
    # m_pᵀ W₂ Q_p Q_x W₂ᵀ 1 for point x (rows) and training point p (columns).
    first = (active * ones) @ (active * (m @ network.w2)).T * (X @ X.T)
    second = hidden @ hidden.T * m.sum(1)
    return eta / len(X) * first.sum(1).detach(), eta / len(X) * second.sum(1).detach()


def test_proposition_10_and_corollary_11():
    labels = torch.arange(len(X)) % C
    one_hot = torch.eye(C, dtype=torch.float64)[labels]
    eta = 1e-5

    network = TwoLayer(C)
    m = 2 * (one_hot - network(X)).detach()
    first, second = proposition_10(network, m, eta)
    found = change_of_inner_products(network, lambda f: (f - one_hot).square().sum(1).mean(), eta)
    torch.testing.assert_close(
        found, first + second, rtol=1e-3, atol=1e-3 * found.abs().max().item()
    )
    assert second.norm() > 0.1 * first.norm()  # so that Corollary 11 is for the cross-entropy only

    network = TwoLayer(C)
    softmax = torch.softmax(network(X), 1).detach()
    first, second = proposition_10(network, one_hot - softmax, eta)
    as_printed = one_hot - softmax.gather(1, labels[:, None])  # the label's entry alone
    printed = sum(proposition_10(network, as_printed, eta))
    found = change_of_inner_products(network, lambda f: nn.functional.cross_entropy(f, labels), eta)
    assert second.norm() < 1e-12 * first.norm()  # Corollary 11
    torch.testing.assert_close(found, first, rtol=1e-3, atol=1e-3 * found.abs().max().item())
    assert (found - printed).norm() > 0.5 * found.norm()
