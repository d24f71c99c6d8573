"""The small tasks that methods are compared on, each learnt from all its points at once.

The seed draws the training points, the test points and the initial weights. Sizes are such that
plain AdamW memorises within hundreds of updates and, with settings that suit it, generalises
within a thousand or two; targets are test accuracies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lab.bench.seeds import generator
from lab.data import images
from lab.data.modular import ModularTask, modular_addition
from lab.data.tasks import parity, sequences_to_copy
from lab.measures.losses import cross_entropy, hinge_loss
from lab.networks.mlp import relu_mlp
from lab.networks.transformer import OneLayerTransformer


def themselves(x: Tensor) -> Tensor:
    """The points of a network whose inputs are numbers already."""
    return x


@dataclass
class Task:
    """A network, what it learns, and when it has learnt it."""

    network: torch.nn.Module
    model: Callable[[Tensor], Tensor]
    """Points (B, *point) → outputs (B, C) or (B,)."""
    data: tuple[Tensor, ...]
    """Training inputs and labels, test inputs and labels."""
    target: float
    """Test accuracy."""
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    points: Callable[[Tensor], Tensor] = themselves
    """Inputs → points, by which Jacobians are taken and to which noise is added."""

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs (B, C) or (B,) of the inputs."""
        return self.model(self.points(x))

    def hidden(self) -> list[torch.nn.Parameter]:
        """The weight matrices, rows as outputs, without embeddings and the layer of the outputs."""
        named = list(self.network.named_parameters())
        inner = [p for key, p in named if p.ndim == 2 and "embedding" not in key]
        # A stack of linear layers ends with that of the outputs.
        return inner[:-1] if isinstance(self.network, torch.nn.Sequential) else inner

    def to(self, device: torch.device, dtype: torch.dtype) -> Task:
        """Moves everything, and returns the task."""
        self.network.to(device, dtype)
        self.data = tuple(
            each.to(device, dtype) if each.is_floating_point() else each.to(device)
            for each in self.data
        )
        return self


def split(task: ModularTask, inputs: Tensor) -> tuple[Tensor, ...]:
    """The data of a task on pairs, of the `inputs` of all of them."""
    return tuple(part[which] for which in task[3:] for part in (inputs, task.labels))


def modular_mlp(seed: int, data_dir: str) -> Task:
    """Addition modulo 31 by two layers, from one-hot vectors of both operands."""
    task = modular_addition(31, 0.7, seed)
    inputs = functional.one_hot(task.pairs, task.p).flatten(1).double()
    network = relu_mlp([2 * task.p, 128, task.p], generator(seed, "weights"))
    return Task(network, network, split(task, inputs), 0.95)


def modular_transformer(seed: int, data_dir: str) -> Task:
    """Addition modulo 29 by one layer of attention, from the tokens of both operands and "="."""
    task = modular_addition(29, 0.6, seed)
    inputs = functional.pad(task.pairs, (0, 1), value=task.p)
    network = OneLayerTransformer(task.p + 1, 3, task.p, 48, 4, 128, generator(seed, "weights"))

    def model(points: Tensor) -> Tensor:
        return network.from_embeddings(points).flatten(1)

    return Task(network, model, split(task, inputs), 0.95, points=network.embed)


def sparse_parity(seed: int, data_dir: str) -> Task:
    """The product of 3 of 20 signs; a constant input stands for the biases."""
    x, y = (part.double() for part in parity(300 + 1000, 20, 3, seed))
    network = relu_mlp([21, 128, 1], generator(seed, "weights"))

    def model(points: Tensor) -> Tensor:
        return network(functional.pad(points, (0, 1), value=1.0))[:, 0]

    data = (x[:300], y[:300], x[300:], y[300:])
    return Task(network, model, data, 0.95, hinge_loss)


def sequence_copying(seed: int, data_dir: str) -> Task:
    """Six symbols of eight, to be written again; initial weights three times too large."""
    tokens, answers = sequences_to_copy(40 + 300, 8, 6, seed)
    network = OneLayerTransformer(9, 12, 8, 32, 2, 64, generator(seed, "weights"), 3.0)

    def model(points: Tensor) -> Tensor:
        return network.from_embeddings(points, last=6).flatten(1)

    data = (tokens[:40], answers[:40], tokens[40:], answers[40:])
    return Task(network, model, data, 0.95, points=network.embed)


def omnigrok(dataset: str, points: int, target: float) -> Callable[[int, str], Task]:
    """Digits by three layers, from initial weights 32 times too large (Liu et al. 2023)."""

    def task(seed: int, data_dir: str) -> Task:
        o = images.ImageOptions(dataset=dataset, data_dir=data_dir, device="cpu", dtype="float64")
        x, y, x_test, y_test = images.load(o)
        some = torch.randperm(len(x), generator=generator(seed, "data"))[:points]
        network = relu_mlp([x.shape[1], 64, 64, 10], generator(seed, "weights"), 32.0)
        return Task(network, network, (x[some], y[some], x_test, y_test), target)

    return task


def xor_clusters(seed: int, data_dir: str) -> Task:
    """The product of two signs among 98 smaller ones, as in Section 4.2 but far smaller."""
    signs = torch.randint(0, 2, (200 + 400, 100), generator=generator(seed, "data")) * 2 - 1
    x, y = signs.double(), (signs[:, 0] * signs[:, 1]).double()
    x[:, 2:] *= 0.2
    network = relu_mlp([100, 128, 1], generator(seed, "weights"))

    def model(points: Tensor) -> Tensor:
        return network(points)[:, 0]

    data = (x[:200], y[:200], x[200:], y[200:])
    return Task(network, model, data, 0.95, functional.mse_loss)


TASKS: dict[str, Callable[[int, str], Task]] = {  # name -> seed and folder of images -> task
    "modular_mlp": modular_mlp,
    "modular_transformer": modular_transformer,
    "sparse_parity": sparse_parity,
    "sequence_copying": sequence_copying,
    "omnigrok_digits": omnigrok("digits", 400, 0.9),
    "omnigrok_mnist": omnigrok("mnist", 1000, 0.85),
    "xor_clusters": xor_clusters,
}
