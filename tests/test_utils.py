"""utils.py against torch.func, against its own formulas, and against careless callers."""

import ast
import copy
import math
import re
import sys
import warnings
from functools import partial
from pathlib import Path
from types import MethodType

import numpy
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

import utils
from utils import PC1, Centroids, JacobianRegulariser, jacobian

torch.manual_seed(0)


class Attention(nn.Module):
    """Self-attention over four tokens, with a head on the last."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.head = nn.Linear(6, 5)

    def forward(self, x):  # (B, 4, 6) → (B, 5)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.head((torch.softmax(q @ k.mT / 6**0.5, dim=-1) @ v)[:, -1])


MODELS = {
    "mlp": (nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 4)), (7,)),
    "inplace": (nn.Sequential(nn.ReLU(inplace=True), nn.Linear(7, 4)), (7,)),
    "cnn": (
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 3),
        ),
        (2, 4, 4),
    ),
    "attention": (Attention(), (4, 6)),
    "scalar": (nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 1), nn.Flatten(0)), (7,)),
}


@pytest.fixture(params=MODELS)
def model_and_input(request):
    model, shape = MODELS[request.param]
    return model, torch.randn(6, *shape)


def reference(model, x):
    """(B, C, D) by torch.func, one point at a time."""
    rows = torch.func.vmap(torch.func.jacrev(lambda z: model(z[None].clone())[0].reshape(-1)))(x)
    return rows.flatten(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_agrees_with_torch_func(model_and_input, dtype):
    model, x = model_and_input
    model, x = model.to(dtype), x.to(dtype)
    close = (
        {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    )
    expected = reference(model, x).detach()

    found = jacobian(model, x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, **close)

    norms = torch.linalg.matrix_norm(expected)
    outputs, norm = JacobianRegulariser(model, num_projections=None).outputs_and_norm(x)
    assert norm.dtype == dtype
    torch.testing.assert_close(norm, norms.mean(), **close)
    torch.testing.assert_close(outputs, model(x.clone()))
    squared = JacobianRegulariser(model, num_projections=None, squared=True)(x)
    torch.testing.assert_close(squared, norms.square().mean(), **close)

    centroids = Centroids(model)(x)
    mu, flat = expected.sum(1), x.flatten(1)
    torch.testing.assert_close(centroids.centroids, mu.reshape(x.shape), **close)
    torch.testing.assert_close(centroids.inner_products, (flat * mu).sum(1), **close)
    torch.testing.assert_close(centroids.norms, mu.norm(dim=1), **close)
    cosine = (flat * mu).sum(1) / (flat.norm(dim=1) * mu.norm(dim=1))
    cosine = cosine.nan_to_num(0)  # of a Jacobian that is zero, where no ReLU lets anything through
    torch.testing.assert_close(centroids.alignments, cosine, **close)

    singular = torch.linalg.svdvals(expected.double())
    explained = singular[:, 0].square() / singular.square().sum(1)
    torch.testing.assert_close(PC1(model)(x), explained, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_projections", [None, 1, 2, 3])
def test_regulariser_gradient_is_that_of_the_projected_norm(num_projections):
    model = MODELS["cnn"][0].double()
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    parameters = dict(model.named_parameters())

    def draw():
        return torch.Generator().manual_seed(3)

    regulariser = JacobianRegulariser(model, num_projections, generator=draw())
    found = torch.autograd.grad(regulariser(x), list(parameters.values()), allow_unused=True)

    directions = JacobianRegulariser(model, num_projections, generator=draw()).directions(
        model(x).detach()
    )

    def by_torch_func(values):
        def f(point):
            return torch.func.functional_call(model, values, (point[None],))[0]

        rows = torch.func.vmap(torch.func.jacrev(f))(x).flatten(2)  # (B, C, D)
        projected = torch.einsum("kbc,bcd->bkd", directions, rows)
        scale = (rows.shape[1] / len(directions)) ** 0.5
        return (projected.square().sum((1, 2)).sqrt() * scale).mean()

    expected = torch.func.grad(by_torch_func)({k: v.detach() for k, v in parameters.items()})
    for (name, _), gradient in zip(parameters.items(), found, strict=True):
        if gradient is None:  # the last bias does not enter the Jacobian
            gradient = torch.zeros_like(expected[name])
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


LINEAR = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("k", [1, 3])
def test_squared_estimate_is_unbiased_with_the_stated_variance(k):
    classes = len(LINEAR)
    x = torch.zeros(1, 4, dtype=torch.float64)
    regulariser = JacobianRegulariser(
        lambda x: x @ LINEAR.T, k, squared=True, generator=torch.Generator().manual_seed(0)
    )
    draws = torch.stack([regulariser(x).detach() for _ in range(4000)])
    truth = LINEAR.square().sum()
    eigenvalues = torch.linalg.eigvalsh(LINEAR @ LINEAR.T)
    kappa = eigenvalues.square().sum() / eigenvalues.sum() ** 2
    relative = 2 * (classes * kappa - 1) / ((classes + 2) * k) * (classes - k) / (classes - 1)
    standard_error = (relative / len(draws)).sqrt()
    assert abs(draws.mean() / truth - 1) < 4 * standard_error
    assert draws.var() / truth**2 == pytest.approx(relative.item(), rel=0.12)


def test_norm_is_biased_low_by_the_stated_amount_at_rank_one():
    column = torch.randn(10, 1, dtype=torch.float64)
    regulariser = JacobianRegulariser(
        lambda x: x @ column.T, generator=torch.Generator().manual_seed(0)
    )
    ratio = regulariser(torch.zeros(20_000, 1, dtype=torch.float64)) / column.norm()
    # E|v₁| of a uniform direction in ten dimensions, times √10.
    exact = math.sqrt(10 / math.pi) * math.gamma(5) / math.gamma(5.5)
    assert exact == pytest.approx(0.82, abs=0.005)
    assert ratio.item() == pytest.approx(exact, abs=0.01)


def test_projections_are_orthonormal_and_follow_their_generator():
    regulariser = JacobianRegulariser(nn.Identity(), 3, generator=torch.Generator().manual_seed(5))
    v = regulariser.directions(torch.zeros(7, 6, dtype=torch.float64)).permute(1, 0, 2)
    torch.testing.assert_close(v @ v.mT, torch.eye(3, dtype=torch.float64).expand(7, 3, 3))

    before = torch.get_rng_state()
    model, x = MODELS["mlp"][0].double(), torch.randn(5, 7, dtype=torch.float64)
    torch.set_rng_state(before)
    twice = [
        JacobianRegulariser(model, 2, generator=torch.Generator().manual_seed(seed))(x)
        for seed in (0, 0, 1)
    ]
    assert twice[0] == twice[1] != twice[2]
    assert torch.equal(before, torch.get_rng_state())


def test_one_forward_pass_serves_outputs_and_norm():
    model, calls = MODELS["mlp"][0].double(), []

    def counted(x):
        calls.append(len(x))
        return model(x)

    x = torch.randn(8, 7, dtype=torch.float64)
    outputs, norm = JacobianRegulariser(counted, 2).outputs_and_norm(x)
    assert calls == [8]
    (outputs.square().mean() + norm).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()


def everything(model, **options):
    return (
        lambda x: jacobian(model, x, **options),
        JacobianRegulariser(model, **options),
        Centroids(model, **options),
        PC1(model, **options),
    )


@pytest.mark.parametrize("which", range(4))
def test_callers_tensors_and_parameters_are_left_alone(which):
    model, shape = MODELS["inplace"]
    model = model.double()
    for requires_grad in (False, True):
        x = torch.randn(5, *shape, dtype=torch.float64)
        before = x.clone()
        x.requires_grad_(requires_grad)
        result = everything(model)[which](x)
        assert x.requires_grad is requires_grad
        assert torch.equal(x, before)
        if which == 1:
            result.backward()  # a leaf is data, and gets no gradient
            model.zero_grad()
        assert x.grad is None
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("which", range(4))
def test_works_where_gradients_are_off(which, mode):
    model = MODELS["cnn"][0].double()
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    generator = torch.Generator()
    calls = everything(model)
    calls[1].generator = generator.manual_seed(0)
    expected = calls[which](x)
    calls[1].generator = generator.manual_seed(0)
    with mode():
        found = calls[which](x.clone())
    for one, other in zip(_tensors(found), _tensors(expected), strict=True):
        torch.testing.assert_close(one, other.detach())
        assert not one.requires_grad


@pytest.mark.parametrize("which", range(4))
def test_batch_size_changes_memory_only(which):
    model = MODELS["cnn"][0].double()
    x = torch.randn(7, 2, 4, 4, dtype=torch.float64)
    whole, chunked = everything(model)[which], everything(model, batch_size=numpy.int64(3))[which]
    if which == 1:  # the same directions however the batch is cut
        whole.num_projections = chunked.num_projections = None
    for one, other in zip(_tensors(chunked(x)), _tensors(whole(x)), strict=True):
        torch.testing.assert_close(one, other)


def _tensors(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
def test_alignment_is_an_angle_whatever_the_size_of_the_jacobian(scale):
    x = torch.randn(4, 5)
    aligned = Centroids(lambda z: scale * (z**2).sum(1))(x).alignments
    torch.testing.assert_close(aligned, torch.ones(4))


def test_an_input_from_a_graph_stays_connected():
    embedding = nn.Embedding(9, 4).double()
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    tokens = torch.arange(5)
    outputs, norm = JacobianRegulariser(model, None).outputs_and_norm(embedding(tokens))
    by_outputs, by_norm = (
        torch.autograd.grad(part, embedding.weight, retain_graph=True)[0][:5]
        for part in (outputs.sum(), norm)
    )
    leaf = embedding.weight[:5].detach().requires_grad_()
    rows = torch.func.vmap(torch.func.jacrev(lambda point: model(point[None])[0]))(leaf)
    expected = torch.autograd.grad(torch.linalg.matrix_norm(rows).mean(), leaf)[0]
    torch.testing.assert_close(by_norm, expected)
    torch.testing.assert_close(by_outputs, torch.autograd.grad(model(leaf).sum(), leaf)[0])


def test_dead_points_are_zero_and_not_nan():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    nn.init.constant_(model[0].weight, 1.0)
    dead, alive = -torch.ones(1, 3), torch.ones(1, 3)
    x = torch.cat([dead, alive])
    assert PC1(model)(x).tolist() == pytest.approx([0.0, 1.0])
    assert Centroids(model)(x).alignments[0] == 0
    norm = JacobianRegulariser(model)(dead)
    norm.backward()
    assert norm == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_pc1_of_tiny_and_of_low_rank_jacobians():
    a = torch.randn(4, 1, dtype=torch.float64) @ torch.randn(1, 6, dtype=torch.float64)
    x = torch.zeros(2, 6, dtype=torch.float64)
    assert (1 - PC1(lambda x: x @ a.T)(x)).abs().max() < 1e-12
    assert (1 - PC1(lambda x: x @ (1e-200 * a).T)(x)).abs().max() < 1e-12
    torch.testing.assert_close(PC1(lambda x: x)(x), torch.full((2,), 1 / 6, dtype=torch.float64))


def test_errors_name_shapes_and_causes():
    x = torch.randn(4, 3)
    bad = {
        "(4, 3)": lambda x: x.sum(),
        "(4, 3, 1)": lambda x: x[..., None],
        "(2, 3)": lambda x: x[:2],
        "depend": lambda x: torch.ones(4, 2),
    }
    for expected, model in bad.items():
        for call in everything(model):
            with pytest.raises(ValueError, match=expected.replace("(", r"\(").replace(")", r"\)")):
                call(x)
    unrelated = torch.ones(4, 2, requires_grad=True)
    for call in everything(lambda x: unrelated):
        with pytest.raises(ValueError, match="depend"):
            call(x)
    for call in everything(nn.Linear(3, 2)):
        with pytest.raises(ValueError, match="int64"):
            call(torch.zeros(4, 3, dtype=torch.long))
        for empty in ((0, 3), (4, 0)):
            with pytest.raises(ValueError, match=f"not empty.* got {re.escape(str(empty))}"):
                call(torch.zeros(empty))
        with pytest.raises(ValueError, match=r"\(B, 1\) where points are numbers, got \(3,\)"):
            call(torch.zeros(3))
        with pytest.raises(ValueError, match=r"be a floating-point tensor .* got list"):
            call([[0.0, 1.0, 2.0]])
    for call in everything(lambda x: x[:, :0]):
        with pytest.raises(ValueError, match=r"maps \(4, 3\) to \(4, 0\)"):
            call(x)
    with pytest.raises(ValueError, match="or None, got Tensor"):
        PC1(nn.Linear(3, 2), x)
    whole = "must be a whole number of at least 1 or None, got"
    for value in (0, 1.5, "many"):
        with pytest.raises(ValueError, match=f"num_projections {whole} {value}"):
            JacobianRegulariser(nn.Linear(3, 2), value)
        for kind in (JacobianRegulariser, Centroids, PC1):
            with pytest.raises(ValueError, match=f"batch_size {whole} {value}"):
                kind(nn.Linear(3, 2), batch_size=value)
        with pytest.raises(ValueError, match=f"batch_size {whole} {value}"):
            jacobian(nn.Linear(3, 2), x, batch_size=value)
    with pytest.raises(ValueError, match="C = 2"):
        JacobianRegulariser(nn.Linear(3, 2), 3)(x)


def test_batch_normalisation_is_refused_in_training_mode_only():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x = torch.randn(4, 3)
    for call in everything(model):
        with pytest.raises(ValueError, match="BatchNorm1d"):
            call(x)
    model.eval()
    torch.testing.assert_close(jacobian(model, x), reference(model, x).detach())
    without_statistics = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match="BatchNorm1d"):
        jacobian(without_statistics, x)


class Encoder(nn.Module):
    """PyTorch's own transformer encoder over four tokens, with a head on their mean."""

    def __init__(self, batch_first=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x):  # (B, 4, 6) → (B, 3)
        return self.head(self.encoder(x).mean(1))


@pytest.mark.parametrize("training", [True, False])
def test_the_fused_attention_of_a_transformer_encoder(training):
    model = Encoder().double().train(training)
    x = torch.randn(3, 4, 6, dtype=torch.float64)

    def rows(values):
        def f(point):
            return torch.func.functional_call(model, values, (point[None],))[0]

        return torch.func.vmap(torch.func.jacrev(f))(x).flatten(2)

    values = {name: p.detach() for name, p in model.named_parameters()}
    with sdpa_kernel(SDPBackend.MATH):
        j = rows(values)
        expected = torch.func.grad(lambda v: torch.linalg.matrix_norm(rows(v)).mean())(values)
    outputs, norm = JacobianRegulariser(model, None).outputs_and_norm(x)
    torch.testing.assert_close(outputs, model(x))
    torch.testing.assert_close(norm, torch.linalg.matrix_norm(j).mean())
    norm.backward()
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-11)

    with torch.no_grad():
        torch.testing.assert_close(jacobian(model, x), j)
        torch.testing.assert_close(Centroids(model)(x).centroids, j.sum(1).reshape(x.shape))
        singular = torch.linalg.svdvals(j).square()
        torch.testing.assert_close(PC1(model)(x), singular[:, 0] / singular.sum(1))


NORM = nn.BatchNorm1d(24)
COUPLED = {
    "hidden": lambda x: NORM(x.flatten(1)),
    "zero_sum": lambda x: torch.cat([x.cumsum(0), -x.cumsum(0)], 1).flatten(1),
    "batch_first": Encoder(batch_first=False),
    "dropout": nn.Sequential(nn.Dropout(0.5), Encoder(batch_first=False)),
    "mean": lambda x: x.flatten(1) - x.mean(0).flatten(),
    "earlier": lambda x: x.flatten(1).cumsum(0),
    "next": lambda x: x.flatten(1).roll(1, 0),
    "halves": lambda x: torch.cat([x[:4], x[4:] * x[:4]]).flatten(1),
}


@pytest.mark.filterwarnings("ignore:metrics are random")
@pytest.mark.parametrize("name", COUPLED)
def test_coupled_points_are_refused_whatever_couples_them(name):
    model, x = COUPLED[name], torch.randn(8, 4, 6)
    for call in everything(model):
        with pytest.raises(ValueError, match="couples its points"):
            call(x)
    for call in everything(model, check=False):
        call(x)


@pytest.mark.parametrize("points", [2, 3, 4, 5])
def test_coupling_in_one_direction_among_few_points(points):
    def earlier(x):
        return nn.functional.pad(x[:-1], (0, 0, 1, 0)) + x

    for model in (earlier, lambda x: earlier(x.flip(0)).flip(0))[: 1 if points == 2 else 2]:
        with pytest.raises(ValueError, match="couples its points"):
            Centroids(model)(torch.randn(points, 3))


def test_a_single_point_leaves_the_check_to_the_next_call():
    for call in everything(lambda x: x - x.mean(0)):
        call(torch.randn(1, 3))
        for _ in range(2):
            with pytest.raises(ValueError, match="couples its points"):
                call(torch.randn(2, 3))


class Counted(torch.autograd.Function):
    """The identity, which counts the passes through it, forward and backward."""

    forwards = backwards = 0

    @staticmethod
    def forward(ctx, x):
        Counted.forwards += 1
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Counted.backwards += 1
        return gradient.clone()


@pytest.mark.filterwarnings("ignore:metrics are random")
@pytest.mark.parametrize("which", range(4))
def test_the_check_is_one_backward_pass_of_the_first_call_and_disturbs_nothing(which):
    def calls(check):
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(9).eval()
        model = nn.Sequential(nn.Linear(7, 9), norm, nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 2))
        call = everything(lambda x: model(Counted.apply(x)), check=check)[which]
        results, passes = [], []
        for _ in range(2):
            Counted.forwards = Counted.backwards = 0
            results += _tensors(call(torch.randn(5, 7)))
            passes += [(Counted.forwards, Counted.backwards)]
        return [*results, torch.get_rng_state(), norm.running_mean], passes

    checked, (first, second) = calls(check=True)
    unchecked, (usual, _) = calls(check=False)
    for one, other in zip(checked, unchecked, strict=True):
        assert torch.equal(one, other)
    assert usual[0] == 1
    assert first == (1, usual[1] + 1)
    assert second == (first if which == 0 else usual)  # a function has no first call


def test_running_statistics_count_one_batch():
    norm = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="couples its points"):
        Centroids(lambda x: norm(x))(torch.randn(4, 3))
    assert norm.num_batches_tracked == 1  # of the model's own pass


def test_an_infinite_slope_couples_no_points():
    x = torch.tensor([[0.0, 1.0], [1.0, 4.0], [0.0, 1.0], [4.0, 1.0]])
    centroids = Centroids(lambda x: x.sqrt().sum(1))(x).centroids
    torch.testing.assert_close(centroids, 0.5 / x.sqrt())


def test_outputs_that_are_no_tensor_are_refused():
    linear, x = nn.Linear(3, 2), torch.randn(4, 3)
    models = {"dict": lambda x: {"logits": linear(x)}, "tuple": lambda x: (linear(x), None)}
    for kind, model in models.items():
        for call in everything(model):
            with pytest.raises(ValueError, match=f"returns a {kind}; wrap it"):
                call(x)


def test_complex_outputs_are_refused():
    for call in everything(torch.fft.fft):
        with pytest.raises(ValueError, match="outputs are complex"):
            call(torch.randn(4, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [1, 2, None])
def test_half_precision(dtype, k):
    single = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 3))
    nn.init.normal_(single[2].weight, std=300.0)
    half, x = copy.deepcopy(single).to(dtype), torch.randn(4, 7)

    def squared(model, x):
        draws = torch.Generator().manual_seed(0)
        return JacobianRegulariser(model, k, squared=True, generator=draws)(x)

    found = squared(half, x.to(dtype))
    assert found > torch.finfo(torch.float16).max
    torch.testing.assert_close(found, squared(single, x), rtol=0.05, atol=0)


def test_centroids_in_half_precision_do_not_overflow():
    found = Centroids(lambda x: 300 * x)(torch.full((2, 7), 300.0, dtype=torch.float16))
    assert found.inner_products.tolist() == [7 * 300.0**2] * 2


def test_directions_in_half_precision_are_orthonormal():
    v = JacobianRegulariser(nn.Identity(), 3).directions(torch.zeros(7, 6, dtype=torch.bfloat16))
    assert v.dtype == torch.bfloat16
    gram = v.permute(1, 0, 2).float() @ v.permute(1, 2, 0).float()
    torch.testing.assert_close(gram, torch.eye(3).expand(7, 3, 3), rtol=0, atol=0.02)


def test_mixed_precision():
    model, x = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 3)), torch.randn(4, 7)
    regulariser = JacobianRegulariser(model, 2)
    regulariser.directions = lambda outputs: torch.eye(3).to(outputs)[:2, None].expand(2, 4, 3)
    expected = torch.autograd.grad(regulariser(x), model[2].weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        outputs, norm = regulariser.outputs_and_norm(x)
    assert (outputs.dtype, norm.dtype) == (torch.bfloat16, torch.float32)
    (found,) = torch.autograd.grad(norm, model[2].weight)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02 * expected.abs().max().item())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_pc1_names_a_jacobian_that_is_not_finite(value):
    with pytest.raises(ValueError, match="not finite"):
        PC1(lambda x: x * value)(torch.randn(4, 3))


def test_models_without_a_double_backward_are_refused():
    network, x = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2)), torch.randn(4, 3)
    compiled = torch.compile(network, backend="aot_eager")
    for model in (compiled, lambda x: compiled(x)):
        for call in everything(model):
            with pytest.raises(ValueError, match=r"torch.compile has no double backward"):
                call(x)
    JacobianRegulariser(nn.Sequential(nn.Linear(2, 3), nn.Tanh()))(compiled(x)).backward()
    assert network[0].weight.grad is not None  # what is compiled before x is differentiated once

    def fused(x):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return nn.functional.scaled_dot_product_attention(*[x[:, None, :, None]] * 3).flatten(1)

    Centroids(fused)(x)
    with pytest.raises(ValueError, match="an operation without a double backward"):
        JacobianRegulariser(fused)(x)


class Square(torch.autograd.Function):
    """As fused kernels are written: its backward cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, v):
        return 2 * ctx.saved_tensors[0] * v


@pytest.mark.parametrize("num_projections", [1, 2, None])
def test_functions_that_are_once_differentiable_are_refused(num_projections):
    """Else torch would leave their terms out of the norm's gradient and say nothing."""
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)), torch.randn(4, 3)
    for call in (lambda x: Square.apply(model(x)), lambda x: model(Square.apply(x))):
        with pytest.raises(ValueError, match="once_differentiable"):
            JacobianRegulariser(call, num_projections)(x)
        with torch.no_grad():  # which measures, and differentiates once
            assert JacobianRegulariser(call, num_projections)(x) > 0
        assert PC1(call)(x).shape == (4,)


def test_frozen_layers():
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    x, weight = torch.randn(6, 3), model[2].weight
    expected_norm = JacobianRegulariser(model, None)(x)
    (expected,) = torch.autograd.grad(expected_norm, weight)
    model.requires_grad_(False)
    torch.testing.assert_close(JacobianRegulariser(model, None)(x), expected_norm.detach())
    weight.requires_grad_()
    JacobianRegulariser(model, None)(x).backward()
    torch.testing.assert_close(weight.grad, expected)
    assert all(p.grad is None for p in model.parameters() if p is not weight)


def test_checkpointing_without_reentry():
    encoder = Encoder().double()
    x, found = torch.randn(3, 4, 6, dtype=torch.float64), []
    for model in (encoder, lambda x: checkpoint(encoder, x, use_reentrant=False)):
        outputs, norm = JacobianRegulariser(model, None).outputs_and_norm(x)
        with sdpa_kernel(SDPBackend.MATH):
            (outputs.square().sum() + norm).backward()
        gradients = [p.grad for p in encoder.parameters()]
        encoder.zero_grad()
        found.append([outputs, norm, *gradients, *Centroids(model)(x), PC1(model)(x)])
    torch.testing.assert_close(*found)


class Attending(nn.Module):
    """Attention with dropout that is a number, and no layer."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(1, 1, dropout=0.5, batch_first=True)

    def forward(self, x):
        x = x[..., None]
        return self.attention(x, x, x, need_weights=False)[0].squeeze(-1)


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)),
        nn.Sequential(nn.Linear(3, 2), StochasticDepth(0.5, "row")),
        Attending(),
    ],
    ids=["layer", "depth", "number"],
)
def test_dropout_in_training_mode_warns_once_where_something_is_measured(model, which):
    def warned(times):
        call = everything(model)[which]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for _ in range(times):
                call(torch.randn(4, 3))
        return ["dropout" in str(warning.message) for warning in caught]

    model.train()
    if which == 1:
        assert warned(3) == []  # a step of training
    with torch.no_grad():
        assert warned(3) == [True]
    model.eval()
    with torch.no_grad():
        assert warned(3) == []


def test_dropout_behind_a_method_or_a_partial_warns_too():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
    for hidden in (model.forward, partial(model), partial(model.forward)):
        with pytest.warns(UserWarning, match="dropout"):
            Centroids(hidden)(torch.randn(4, 3))


def test_a_method_need_not_use_a_batch_normalisation():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.BatchNorm1d(2)})
    owner = MethodType(lambda self, x: self["used"](x), model)
    assert jacobian(owner, torch.randn(4, 3)).shape == (4, 2, 3)


def test_outputs_and_norm_share_the_mask_of_dropout():
    model = nn.Sequential(nn.Linear(1, 50, bias=False), nn.Dropout(0.5), nn.Linear(50, 1, False))
    x = torch.rand(20, 1) + 1
    outputs, norm = JacobianRegulariser(model).outputs_and_norm(x)
    torch.testing.assert_close(norm, (outputs / x).abs().mean())


def test_utils_imports_torch_and_the_standard_library_only():
    tree = ast.parse(Path(utils.__file__).read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in names}
    assert roots - set(sys.stdlib_module_names) == {"torch"}
