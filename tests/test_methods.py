"""The methods of the leaderboard against their authors' rules, over several updates in float64."""

import itertools

import pytest
import pytorch_optimizer
import torch
from torch.nn import functional

from lab.bench.errors import UserError
from lab.bench.seeds import generator
from lab.data.images import _digits
from lab.measures.losses import accuracy, cross_entropy, hinge_loss
from lab.methods.interface import Knob, Method, methods
from lab.methods.tasks import TASKS, Task
from lab.networks.mlp import relu_mlp
from lab.networks.transformer import OneLayerTransformer

METHODS = methods()
of_torch_2_9 = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 brought Muon")
LR, DECAY, UPDATES = 0.02, 0.1, 6
BETAS = (0.9, 0.98)


def classes(seed=0, biases=True):
    """Three classes of 40 points, by two layers with a bias in between."""
    draws = generator(seed, "test")
    network = relu_mlp([6, 9, 3], draws)
    if biases:
        network[0].bias = torch.nn.Parameter(torch.randn(9, generator=draws).double())
    x = torch.randn(40, 6, generator=draws).double()
    y = (x @ torch.randn(6, 3, generator=draws).double()).argmax(1)
    return Task(network, network, (x, y, x, y), 0.9)


def signs(seed=0):
    """Signs of 30 points, by two layers."""
    draws = generator(seed, "test")
    network = relu_mlp([5, 8, 1], draws)
    x = torch.randn(30, 5, generator=draws).double()
    data = (x, x[:, 0].sign(), x, x[:, 0].sign())
    return Task(network, lambda points: network(points)[:, 0], data, 0.9, hinge_loss)


def tokens(seed=0):
    """Four symbols by a small transformer, which has embeddings."""
    draws = generator(seed, "test")
    network = OneLayerTransformer(5, 3, 4, 8, 2, 12, draws)
    x = torch.randint(0, 5, (30, 3), generator=draws)

    def model(points):
        return network.from_embeddings(points).flatten(1)

    task = Task(network, model, (x, x[:, 0] % 4, x, x[:, 0] % 4), 0.9, points=network.embed)
    return task.to(torch.device("cpu"), torch.float64)


def train(task, method, optimiser, steps):
    """Updates by the loop of accelerate.py."""
    x, y = task.data[:2]
    for step in steps:
        method.draws.manual_seed(step)
        loss = method.loss(x, y)
        optimiser.zero_grad()
        loss.backward(inputs=method.parameters)
        method.filter_gradients()
        optimiser.step()
        method.project_weights()


def updates(name, task, number=UPDATES, decay=DECAY, **knobs):
    """Weights after some updates."""
    method = METHODS[name](task, knobs)
    train(task, method, method.optimiser(LR, decay), range(number))
    return [p.detach().clone() for p in task.network.parameters()]


def reference(
    task, loss_of=None, filtered=lambda step: None, after=lambda: None, number=UPDATES, decay=DECAY
):
    """Weights after as many of torch's AdamW on gradients that a rule may have changed."""
    parameters = list(task.network.parameters())
    optimiser = torch.optim.AdamW(parameters, LR, BETAS, weight_decay=decay)
    x, y = task.data[:2]
    for step in range(number):
        optimiser.zero_grad()
        loss = loss_of(x, y, step) if loss_of else task.loss(task.outputs(x), y)
        loss.backward(inputs=parameters)
        with torch.no_grad():
            filtered(step)
        optimiser.step()
        with torch.no_grad():
            after()
    return [p.detach().clone() for p in parameters]


def same(found, wanted, atol=1e-6):
    assert all(torch.allclose(a, b, rtol=0, atol=atol) for a, b in zip(found, wanted, strict=True))
    return True


def differ(found, wanted):
    return any((a - b).abs().max() > 1e-4 for a, b in zip(found, wanted, strict=True))


PLAIN = {kind: reference(kind()) for kind in (classes, signs, tokens)}


def test_adamw_is_loshchilov_and_hutters_rule():
    task = classes()
    parameters = list(task.network.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    x, y = task.data[:2]
    for t in range(1, UPDATES + 1):
        gradients = torch.autograd.grad(task.loss(task.outputs(x), y), parameters)
        for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.98).add_(0.02 * g**2)
            moved = (m / (1 - 0.9**t)) / ((v / (1 - 0.98**t)).sqrt() + 1e-8)
            p.data -= LR * (moved + DECAY * p.data)
    assert same(updates("adamw", classes()), [p.detach() for p in parameters])


def test_grokalign_is_the_loss_and_the_exact_norm_of_a_scalars_jacobian():
    task = signs()

    def loss_of(x, y, step):
        jacobians = torch.func.vmap(torch.func.jacrev(lambda p: task.model(p[None])[0]))(x)
        return task.loss(task.outputs(x), y) + 0.3 * jacobians.norm(dim=1).mean()

    found = updates("grokalign", signs(), jr=0.3)
    assert same(found, reference(task, loss_of))
    assert differ(found, PLAIN[signs])


def test_grokalign_projects_on_one_direction_and_reaches_embeddings():
    task = tokens()

    def loss_of(tokens, y, step):
        points = task.points(tokens)
        outputs = task.model(points)
        draws = torch.Generator().manual_seed(step)
        v = torch.randn(len(points), 4, 1, generator=draws, dtype=torch.float64)[..., 0]
        (rows,) = torch.autograd.grad(
            outputs, points, functional.normalize(v, dim=1), create_graph=True
        )
        return task.loss(outputs, y) + 0.3 * 2 * rows.flatten(1).norm(dim=1).mean()  # √4 = 2

    assert same(updates("grokalign", tokens(), jr=0.3), reference(task, loss_of))


def test_grokfast_ema_is_the_authors_filter():
    task, averages = classes(), {}

    def filtered(step):
        for name, p in task.network.named_parameters():
            averages.setdefault(name, p.grad.clone())
            averages[name] = averages[name] * 0.9 + p.grad * (1 - 0.9)
            p.grad += 2.5 * averages[name]

    found = updates("grokfast_ema", classes(), alpha=0.9, lamb=2.5)
    assert same(found, reference(task, filtered=filtered))
    assert differ(found, PLAIN[classes])
    task = classes()
    oracle = pytorch_optimizer.GrokFastAdamW(
        task.network.parameters(), LR, BETAS, grokfast_alpha=0.9, grokfast_lamb=2.5,
        weight_decay=DECAY, normalize_lr=False,
    )  # fmt: skip
    assert same(found, stepped(task, oracle))


def stepped(task, oracle, second=False):
    """Weights after updates by a library's optimiser; `second` for one that needs a closure."""
    x, y = task.data[:2]

    def closure():
        oracle.zero_grad()
        loss = task.loss(task.outputs(x), y)
        loss.backward()
        return loss

    for _ in range(UPDATES):
        closure()
        oracle.step(closure) if second else oracle.step()
    return [p.detach().clone() for p in task.network.parameters()]


def test_grokfast_ma_is_the_authors_filter_and_waits_for_its_window():
    task, window = classes(), []

    def filtered(step):
        window.append([p.grad.clone() for p in task.network.parameters()])
        del window[:-3]
        if len(window) == 3:
            for p, *last in zip(task.network.parameters(), *window, strict=True):
                p.grad += 4.0 * sum(last) / 3

    found = updates("grokfast_ma", classes(), window=3, lamb=4.0)
    assert same(found, reference(task, filtered=filtered))
    assert differ(found, PLAIN[classes])
    two = updates("grokfast_ma", classes(), number=2, window=3, lamb=4.0)
    assert same(two, reference(classes(), number=2))


def test_stablemax_is_the_authors_loss():
    task = classes()

    def loss_of(x, y, step):
        logits = task.outputs(x)
        s = torch.where(logits < 0, 1 / (1 - logits + 1e-30), logits + 1)
        return -torch.log(s / s.sum(-1, keepdim=True)).gather(1, y[:, None]).mean()

    found = updates("stablemax", classes())
    assert same(found, reference(task, loss_of))
    assert differ(found, PLAIN[classes])


def test_stablemax_has_gradients_where_logits_are_one_or_huge():
    logits = torch.tensor([[1.0, -1e6, 1e6], [0.0, 1.0, 2.0]], requires_grad=True)
    task = Task(torch.nn.Identity(), torch.nn.Identity(), (logits, torch.tensor([2, 0])), 0.9)
    METHODS["stablemax"](task_with_parameters(task), {}).loss(*task.data).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[1].abs().min() > 0


def task_with_parameters(task):
    task.network = torch.nn.Linear(1, 1)
    return task


def test_orthograd_is_the_authors_projection():
    found = updates("orthograd", classes())
    task = classes()

    def filtered(step):
        for p in task.network.parameters():
            w, g = p.flatten(), p.grad.flatten()
            left = g - (w @ g) / (w @ w) * w
            p.grad = (left * g.norm() / left.norm()).view_as(p)

    assert same(found, reference(task, filtered=filtered))
    assert differ(found, PLAIN[classes])
    task = classes()
    adamw = torch.optim.AdamW(task.network.parameters(), LR, BETAS, weight_decay=DECAY)
    assert same(found, stepped(task, pytorch_optimizer.OrthoGrad(adamw)))


@of_torch_2_9
def test_muon_is_jordans_rule_on_hidden_matrices_and_adamw_elsewhere():
    found, task = updates("muon", tokens()), tokens()
    hidden = {"queries", "keys", "values", "mixing", "mlp_in", "mlp_out"}
    momenta = {n: torch.zeros_like(p) for n, p in task.network.named_parameters()}
    steps = {}

    def orthogonalised(g):  # five steps of Newton and Schulz, in bfloat16
        x = g.bfloat16()
        x = x.T if len(g) > g.shape[1] else x
        x = x / x.norm().clamp(min=1e-7)
        for _ in range(5):
            a = x @ x.T
            b = torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315)  # rounded once, as torch does
            x = torch.addmm(x, b, x, beta=3.4445)
        return x.T if len(g) > g.shape[1] else x

    def filtered(step):
        for n, p in task.network.named_parameters():
            if n in hidden:
                momenta[n].lerp_(p.grad, 0.05)
                update = orthogonalised(p.grad.lerp(momenta[n], 0.95)).to(p)
                steps[n] = p * (1 - LR * DECAY) - LR * 0.2 * max(p.shape) ** 0.5 * update

    def after():
        for n, p in task.network.named_parameters():
            if n in hidden:
                p.copy_(steps[n])

    assert same(found, reference(task, filtered=filtered, after=after))
    assert differ(found, PLAIN[tokens])


def equalised(g):
    u, s, _ = torch.linalg.svd(g, full_matrices=False)
    return (u / s.clamp(min=1e-6)) @ (u.T @ g)


def test_egd_is_the_authors_equalisation():
    found, task = updates("egd", classes()), classes()

    def filtered(step):
        matrix = task.network[0].weight  # the other is the layer of the outputs
        matrix.grad = equalised(matrix.grad)

    assert same(found, reference(task, filtered=filtered))
    assert differ(found, PLAIN[classes])


def test_egd_leaves_what_has_no_gradient_as_it_is():
    task = tokens()
    method = METHODS["egd"](task, {})
    method.loss(*task.data[:2]).backward()
    wanted = [equalised(matrix.grad) for matrix in task.hidden()]
    ranks = [torch.linalg.matrix_rank(matrix.grad) for matrix in task.hidden()]
    assert min(ranks) < 8
    method.filter_gradients()
    found = [matrix.grad for matrix in task.hidden()]
    assert same(found, wanted, atol=1e-8)
    lengths = [torch.linalg.svdvals(g)[:rank] for g, rank in zip(found, ranks, strict=True)]
    assert torch.cat(lengths) == pytest.approx(1, abs=1e-6)


def test_row_norms_are_clipped_as_the_authors_clip_them():
    found, task = updates("row_norm_clipping", classes(), c=0.9), classes()

    def after():
        for p in (task.network[0].weight, task.network[0].bias):  # not the head
            norm = p.norm(dim=-1, keepdim=True).clamp(min=1e-8)
            p.mul_(norm.clamp(max=0.9) / norm)

    assert same(found, reference(task, after=after))
    assert differ(found, PLAIN[classes])
    assert torch.linalg.vector_norm(found[0], dim=1).max() < 0.9 + 1e-9


def test_decay_begins_when_the_training_points_are_known():
    task, began = classes(), []

    def loss_of(x, y, step):
        outputs = task.outputs(x)
        loss = task.loss(outputs, y)
        if (outputs.argmax(1) == y).double().mean() >= 0.99:
            began.append(step)
            loss = loss + 0.05 * (
                task.network[0].weight.norm() ** 2 + task.network[2].weight.norm() ** 2
            )
        return loss

    found = updates("decay_after_memorising", classes(), number=60, lamb=0.05)
    wanted = reference(task, loss_of, number=60)
    assert 0 < began[0] < 55
    assert same(found, wanted)
    assert differ(found, reference(classes(), number=60))


def test_noise_is_larger_before_the_network_has_learnt():
    task, sizes = classes(), []

    def loss_of(x, y, step):
        std = max(0.4 * (1 - float(accuracy(task.outputs(x), y))), 0.2)
        sizes.append(std)
        draws = torch.Generator().manual_seed(step)
        noisy = x + std * torch.randn(x.shape, generator=draws, dtype=x.dtype)
        return task.loss(task.outputs(noisy), y)

    found = updates("input_noise", classes(), number=40, std=0.4)
    assert same(found, reference(task, loss_of, number=40))
    assert sizes[0] > 0.2 and sizes[-1] == 0.2
    assert differ(found, reference(classes(), number=40))


def test_sam_takes_the_gradient_at_the_worst_weights_nearby():
    found, task = updates("sam", classes(), rho=0.3), classes()
    parameters = list(task.network.parameters())

    def loss_of(x, y, step):
        gradients = torch.autograd.grad(task.loss(task.outputs(x), y), parameters)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        moved = {
            n: p + 0.3 * g / norm
            for (n, p), g in zip(task.network.named_parameters(), gradients, strict=True)
        }
        return task.loss(torch.func.functional_call(task.network, moved, (x,)), y)

    assert same(found, reference(task, loss_of))
    assert differ(found, PLAIN[classes])
    task = classes()
    oracle = pytorch_optimizer.SAM(
        task.network.parameters(), torch.optim.AdamW, rho=0.3, lr=LR, betas=BETAS,
        weight_decay=DECAY,
    )  # fmt: skip
    assert same(found, stepped(task, oracle, second=True))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[of_torch_2_9] * (name == "muon")) for name in METHODS]
)
def test_continues_from_its_state_as_if_it_had_never_stopped(name):
    kind = signs if name == "grokalign" else classes
    knobs = {"window": 4} if name == "grokfast_ma" else {}
    straight = updates(name, kind(), **knobs)
    task, saved = kind(), {}
    for steps in (range(3), range(3, UPDATES)):
        method = METHODS[name](task, knobs)
        optimiser = method.optimiser(LR, DECAY)
        if saved:
            method.load_state_dict(saved["method"])
            optimiser.load_state_dict(saved["optimiser"])
        train(task, method, optimiser, steps)
        saved = {"method": method.state_dict(), "optimiser": optimiser.state_dict()}
    assert same([p.detach() for p in task.network.parameters()], straight, atol=0)


def test_the_twelve_and_their_sources():
    assert set(METHODS) == {
        "adamw", "decay_after_memorising", "egd", "grokalign", "grokfast_ema", "grokfast_ma",
        "input_noise", "muon", "orthograd", "row_norm_clipping", "sam", "stablemax",
    }  # fmt: skip
    for method in METHODS.values():
        knobs = method.knobs()
        assert len(knobs) <= 2
        assert all(knob.least <= knob.default <= knob.most for knob in knobs.values())


def test_knobs_span_their_range_evenly_in_the_logarithm():
    knob = Knob(0.01, 0.001, 0.1)
    assert [knob.at(share) for share in (0, 0.5, 1)] == [0.001, 0.01, 0.1]
    assert [Knob(0.9, 0.9, 0.999, near_one=True).at(share) for share in (0, 0.5, 1)] == [
        0.9, 0.99, 0.999,
    ]  # fmt: skip
    assert Knob(100, 10, 200, whole=True).at(0.5) == 45


@pytest.mark.parametrize("task", ["sparse_parity", "xor_clusters"])
def test_stablemax_refuses_a_loss_without_a_softmax(task):
    with pytest.raises(UserError, match="--method stablemax takes a --task with the cross entropy"):
        METHODS["stablemax"](TASKS[task](0, "data"), {})


def test_every_task_is_of_its_seed_and_can_be_measured():
    for name in set(TASKS) - {"omnigrok_mnist"}:
        first, again, other = (TASKS[name](seed, "nowhere") for seed in (1, 1, 2))
        for task in (first, other):
            task.to(torch.device("cpu"), torch.float32)
        x, y, x_test, y_test = first.data
        assert torch.equal(x, again.to(torch.device("cpu"), torch.float32).data[0])
        assert x.shape == other.data[0].shape and not torch.equal(x, other.data[0])
        assert not any((row == x.flatten(1)).all(1).any() for row in x_test.flatten(1)[:20])
        begun = float(accuracy(first.outputs(x_test), y_test))
        assert begun < first.target - 0.2
        assert first.loss(first.outputs(x), y).isfinite()
        sizes = [p.numel() for p in first.network.parameters()]
        assert sum(sizes) < 30_000
        assert first.hidden() and all(p.ndim == 2 for p in first.hidden())


def test_labels_are_the_tasks():
    x, y, *_ = TASKS["modular_mlp"](0, "data").data
    a, b = (part.argmax(1) for part in x.split(31, dim=1))
    assert torch.equal((a + b) % 31, y)
    x, y, *_ = TASKS["modular_transformer"](0, "data").data
    assert torch.equal((x[:, 0] + x[:, 1]) % 29, y) and (x[:, 2] == 29).all()
    x, y, *_ = TASKS["sparse_parity"](0, "data").data
    assert torch.equal(x[:, :3].prod(1), y)
    x, y, *_ = TASKS["xor_clusters"](0, "data").data
    assert torch.equal(x[:, 0] * x[:, 1], y) and (x[:, 2:].abs() == 0.2).all()
    x, y, x_test, y_test = TASKS["omnigrok_digits"](0, "data").data
    (_, _), (pixels, labels) = _digits()
    assert torch.equal(x_test, pixels.flatten(1)) and torch.equal(y_test, labels)
    x, y, *_ = TASKS["sequence_copying"](0, "data").data
    assert torch.equal(x[:, :6], y) and (x[:, 6:] == 8).all()


def test_accuracy_counts_signs_classes_and_positions():
    assert accuracy(torch.tensor([0.5, -2.0]), torch.tensor([1.0, 1.0])) == 0.5
    assert accuracy(torch.eye(3), torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)
    both = torch.cat([torch.eye(2), torch.eye(2)], 1)  # two positions of two classes
    assert accuracy(both, torch.tensor([[0, 0], [0, 1]])) == 0.75
    ce = cross_entropy(both, torch.tensor([[0, 0], [1, 1]]))
    assert ce == pytest.approx(functional.cross_entropy(torch.eye(2), torch.tensor([0, 1])))


def test_embeddings_and_the_last_layer_are_not_hidden():
    inner = {name for name, p in tokens().network.named_parameters()}
    outer = {"token_embedding", "position_embedding", "unembedding", "mlp_in_bias", "mlp_out_bias"}
    task = tokens()
    names = {n for n, p in task.network.named_parameters() if any(p is h for h in task.hidden())}
    assert names == inner - outer
    layers = [p.shape for p in classes().hidden()]
    assert layers == [torch.Size([9, 6])]
    assert list(itertools.chain(*layers)) == [9, 6]


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"a": Knob(0.0, 0.0, 1.0)}, "a takes a range above 0, got 0 to 1"),
        ({"a": Knob(0.9, 0.9, 1.0, near_one=True)}, "a range between 0 and 1, got 0.9 to 1"),
        (dict.fromkeys("abc", Knob(0.1, 0.1, 1.0)), "a method takes at most 2 knobs"),
    ],
)
def test_a_method_whose_trials_cannot_be_drawn_is_refused(knobs, says):
    with pytest.raises(UserError, match=says):
        type("Broken", (Method,), knobs)
