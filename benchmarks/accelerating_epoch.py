"""An epoch of Table 1's training, with and without the regulariser, against a plain reference.

The reference is written out below: a DataLoader with two workers over torchvision's transforms,
autograd, and a forward pass of its own for the regulariser.
Ours is the loop of accelerating_grokking.py, with the regulariser of `utils.py` and its drop-in,
`lab/fast/relu_norm.py`. What an update of each method costs: benchmarks/costs_of_table_1.py.

    python benchmarks/accelerating_epoch.py [--dtype float64]

Then an update of inhibiting_generalisation.py, in its precision. Ours are timed by this thread's
own time, which other work on the machine hardly changes; against the reference it is wall time,
since its workers are processes, on one thread and on as many as torch takes by itself. Denormal
numbers count as zero, as in the scripts, for the reference too; what they cost otherwise is a row
of its own.

Result in float32, one CPU thread: an epoch 23 ms, with the regulariser 43 ms, at 59 and 55 % of the
matrix rate; the reference takes 15 and 9 times as long. An update of Figure 7 4.9 ms, with the term
9.4 ms, at 52 and 51 %. In float64, Table 1's precision, an epoch 53 and 100 ms, at 64 and 63 %.
"""

import sys
import time
from functools import partial
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import command_line, in_turns, settle, table
from lab.bench.draws import Batches
from lab.bench.seeds import generator
from lab.fast.relu_norm import ReluRegulariser
from lab.networks.mlp import relu_mlp
from utils import JacobianRegulariser

KINDS = {"autograd": JacobianRegulariser, "drop-in": ReluRegulariser}
POINTS, BATCH, JR, WARM_UP = 1024, 256, 1e-3, 25  # epochs
ROUNDS, REFERENCE_ROUNDS = 15, 5
FIGURE_7 = 196  # points of an update
KEPT = "drop-in, denormals kept"
cross_entropy, mse_loss = torch.nn.functional.cross_entropy, torch.nn.functional.mse_loss


class Pixels(torchvision.datasets.VisionDataset):
    """Images of bytes, read as torchvision's MNIST reads its own: by Pillow and its transforms."""

    def __init__(self, pixels, labels):
        super().__init__(
            "",
            transform=transforms.Compose(
                [
                    transforms.ToTensor(),
                    transforms.Normalize((0.1307,), (0.3081,)),
                    transforms.Lambda(torch.flatten),
                ]
            ),
        )
        self.pixels, self.labels = pixels, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = Image.fromarray(self.pixels[i].numpy())
        return self.transform(image), int(self.labels[i])


def points_of(pixels, dtype):
    """Normalised and flat, as the scripts have them."""
    return ((pixels.to(dtype) / 255 - 0.1307) / 0.3081).flatten(1)


def training(jr, network, optimiser, pixels, y, dtype):
    """A function for each way of training an epoch."""
    parameters, x = list(network.parameters()), points_of(pixels, dtype)
    regularisers = [kind(network, generator=generator(0)) for kind in KINDS.values()]
    loader = torch.utils.data.DataLoader(Pixels(pixels, y), BATCH, shuffle=True, num_workers=2)
    batch, steps = Batches(0, POINTS, BATCH, "shuffled", x.device), iter(range(10**9))

    def reference():
        for points, labels in loader:
            points = points.to(dtype)
            loss = cross_entropy(network(points), labels)
            if jr:
                points = points.clone().requires_grad_()
                outputs = network(points)
                v = torch.nn.functional.normalize(torch.randn_like(outputs), dim=1)
                (rows,) = torch.autograd.grad(outputs, points, v, create_graph=True)
                loss = loss + jr * outputs.shape[1] ** 0.5 * rows.norm(dim=1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    def ours(regulariser):
        for _ in range(batch.epoch_length):
            batch.at(next(steps))
            points, labels = batch(x), batch(y)
            if jr:
                outputs, norm = regulariser.outputs_and_norm(points)
                loss = cross_entropy(outputs, labels) + jr * norm
            else:
                loss = cross_entropy(network(points), labels)
            optimiser.zero_grad()
            loss.backward(inputs=parameters)
            optimiser.step()

    ways = {name: partial(ours, r) for name, r in zip(KINDS, regularisers, strict=True)}
    return {"reference": reference, **ways}


def with_denormals(epoch):
    torch.set_flush_denormal(False)
    epoch()
    torch.set_flush_denormal(True)


def update_of_figure_7(pixels, y, level):
    """A function that makes an update of inhibiting_generalisation.py, without the term if None."""
    x, batch = points_of(pixels, torch.float32), Batches(0, POINTS, FIGURE_7, "shuffled", y.device)
    targets = torch.nn.functional.one_hot(y, 10).to(x)
    network = relu_mlp([784, 196, 196, 196, 10], generator(0, "weights"), 8.0).float()
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    regulariser = ReluRegulariser(network, generator=generator(0))

    def update():
        if level is None:
            loss = mse_loss(network(batch(x)), batch(targets))
        else:
            outputs, norm = regulariser.outputs_and_norm(batch(x))
            loss = mse_loss(outputs, batch(targets)) + JR * (level - norm).abs()
        optimiser.zero_grad()
        loss.backward(inputs=parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()

    return update


def main(argv=None):
    """Prints milliseconds an epoch and an update, ratios, and shares of the matrix rate."""
    parser = command_line(__doc__)
    text = "precision of the epochs (default: float32)"
    parser.add_argument("--dtype", default="float32", choices=("float64", "float32"), help=text)
    o = parser.parse_args(argv)
    dtype, threads = getattr(torch, o.dtype), torch.get_num_threads()
    settle()
    draws = generator(0)
    # Ten clusters, which are learnt within the first epochs, as MNIST's training points are.
    y = torch.randint(0, 10, (POINTS,), generator=draws)
    noise, centres = (torch.randint(0, 128, (n, 28, 28), generator=draws) for n in (POINTS, 10))
    pixels = (noise + centres[y]).to(torch.uint8)
    ways = {}
    for jr in (0.0, JR):
        for kept in (False, True):  # networks of their own, since one flush cleans the optimiser
            torch.set_flush_denormal(not kept)
            network = relu_mlp([784, 196, 196, 196, 10], generator(0, "weights"), 8.0).to(dtype)
            for fused in (False, True):
                optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=fused)
                for name, epoch in training(jr, network, optimiser, pixels, y, dtype).items():
                    if kept and fused and name == "drop-in":
                        ways[KEPT, jr] = partial(with_denormals, epoch)
                    elif not kept and fused == (name != "reference"):
                        ways[name, jr] = epoch
            for _ in range(WARM_UP):
                ways[KEPT if kept else "drop-in", jr]()
    torch.set_flush_denormal(True)
    of_reference = {way: epoch for way, epoch in ways.items() if way[0] in ("reference", "drop-in")}
    timed = in_turns({way: e for way, e in ways.items() if way[0] != "reference"}, ROUNDS)
    print(f"torch {torch.__version__}, 1 thread, {POINTS} points, batches of {BATCH}, {o.dtype}")
    for jr, words in ((0.0, "epoch, without the regulariser"), (JR, "epoch, with it")):
        table(words, {name: found for (name, of), found in timed.items() if of == jr})
    least = min(timed[name, 0.0].seconds for name in KINDS)
    print(f"drop-in with regulariser / faster without: {timed['drop-in', JR].seconds / least:.2f}")

    for number in sorted({1, threads}):
        torch.set_num_threads(number)
        wall = in_turns(of_reference, REFERENCE_ROUNDS, time.perf_counter)
        off, on = (wall["reference", jr].seconds / wall["drop-in", jr].seconds for jr in (0.0, JR))
        print(f"reference / drop-in, wall, {number} threads: {off:.1f}, regularised {on:.1f}")
    torch.set_num_threads(1)
    levels = {"without the term": None, "with it": 0.0}
    updates = {name: update_of_figure_7(pixels, y, level) for name, level in levels.items()}
    table(f"Figure 7's update, {FIGURE_7} points, float32", in_turns(updates, ROUNDS))


if __name__ == "__main__":
    main()
