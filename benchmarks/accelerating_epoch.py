"""An epoch of Table 1's training, with and without the regulariser, against a plain reference.

The reference is written out below: a DataLoader with two workers over torchvision's transforms,
autograd, and a forward pass of its own for the regulariser.
Ours is the loop of accelerating_grokking.py, with the regulariser of `utils.py` and its drop-in,
`lab/fast/relu_norm.py`. Then what an update of each row of Table 1 costs.

    python benchmarks/accelerating_epoch.py

The ratios between ours are of CPU time of this process on one thread, which other work on the
machine hardly changes; those to the reference are of wall time, since its workers are processes,
on one thread and on as many as torch takes by itself. Denormal numbers count as zero, as in the
scripts, for the reference too; what they cost otherwise is a row of its own.
"""

import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import accelerating_grokking as script
from lab.bench.draws import Batches
from lab.bench.runs import Run
from lab.bench.seeds import generator
from lab.data import images
from lab.fast.relu_norm import ReluRegulariser
from lab.networks.mlp import relu_mlp
from utils import JacobianRegulariser

KINDS = {"autograd": JacobianRegulariser, "drop-in": ReluRegulariser}
POINTS, BATCH, JR, WARM_UP, REPEATS = 1024, 256, 1e-3, 25, 15  # epochs
METHODS = {
    "baseline": {},
    "GrokAlign": {"jr": JR},
    "GrokAlign by autograd": {"jr": JR, "autograd": True},
    "exact norm on a quarter": {"jr": JR, "num_projections": "exact", "jr_fraction": 0.25},
    "Grokfast": {"grokfast": True},
    "noise on the inputs": {"adv_training": True},
    "Muon": {"optimiser": "muon"},
}
UPDATES, TURNS = 60, 5
KEPT = "drop-in, denormals kept"
cross_entropy = torch.nn.functional.cross_entropy


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


def training(jr, network, optimiser, pixels, y):
    """A function for each way of training an epoch."""
    parameters = list(network.parameters())
    x = ((pixels.float() / 255 - 0.1307) / 0.3081).flatten(1)
    regularisers = [kind(network, generator=generator(0)) for kind in KINDS.values()]
    loader = torch.utils.data.DataLoader(Pixels(pixels, y), BATCH, shuffle=True, num_workers=2)
    batch, steps = Batches(0, POINTS, BATCH, "shuffled", x.device), iter(range(10**9))

    def reference():
        for points, labels in loader:
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


def medians(ways):
    """Milliseconds an epoch of each way, of wall time and of CPU time of this process."""
    wall, cpu = ({way: [] for way in ways} for _ in range(2))
    for _ in range(REPEATS):  # in turns, so that what else the machine does falls on all alike
        for way, epoch in ways.items():
            torch.set_flush_denormal(way[0] != KEPT)
            began = time.perf_counter(), time.process_time()
            epoch()
            wall[way].append(1e3 * (time.perf_counter() - began[0]))
            cpu[way].append(1e3 * (time.process_time() - began[1]))
    return [{way: statistics.median(t) for way, t in times.items()} for times in (wall, cpu)]


def rows_of_table_1(pixels, y):
    """Prints what an update of accelerating_grokking.py costs, by the seconds its runs count."""
    x = ((pixels.float() / 255 - 0.1307) / 0.3081).flatten(1)
    data = images.Images(x, y, x, y)
    taken = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS):  # in turns, as above
            for name, options in METHODS.items():
                o = script.Options(
                    steps=UPDATES, num_logs=2, check_every=UPDATES, stop_at=None, device="cpu",
                    out_dir=folder, name=f"{name} {turn}", dtype="float32", **options,
                )  # fmt: skip
                run = Run("accelerating_grokking", o)
                script.train(run, o, data)
                taken[name].append(1e3 * run.seconds / UPDATES)
    least = {name: min(times) for name, times in taken.items()}
    print("\nmilliseconds an update, least of runs   CPU    ratio")
    for name, time_taken in least.items():
        print(f"{name:35} {time_taken:7.2f} {time_taken / least['baseline']:8.2f}")


def main():
    """Prints milliseconds an epoch, and the ratios."""
    draws = generator(0)
    # Ten clusters, which are learnt within the first epochs, as MNIST's training points are.
    y = torch.randint(0, 10, (POINTS,), generator=draws)
    noise, centres = (torch.randint(0, 128, (n, 28, 28), generator=draws) for n in (POINTS, 10))
    pixels = (noise + centres[y]).to(torch.uint8)
    ways = {}
    for jr in (0.0, JR):
        for kept in (False, True):  # networks of their own, since one flush cleans the optimiser
            torch.set_flush_denormal(not kept)
            network = relu_mlp([784, 196, 196, 196, 10], generator(0, "weights"), 8.0).float()
            for fused in (False, True):
                optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=fused)
                for name, epoch in training(jr, network, optimiser, pixels, y).items():
                    if kept and fused and name == "drop-in":
                        ways[KEPT, jr] = epoch
                    elif not kept and fused == (name != "reference"):
                        ways[name, jr] = epoch
            for _ in range(WARM_UP):
                ways[KEPT if kept else "drop-in", jr]()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    wall, cpu = medians(ways)
    print(f"torch {torch.__version__}, 1 thread, {POINTS} points, batches of {BATCH}, float32")
    print("milliseconds an epoch, median    without       with regulariser      ratio")
    for name in ("reference", "autograd", "drop-in", KEPT):
        times = cpu if name != "reference" else wall
        kind = "CPU" if name != "reference" else "wall"
        off, on = times[name, 0.0], times[name, JR]
        print(f"{name:27} {kind:6} {off:8.1f} {on:19.1f} {on / off:18.2f}")
    best = cpu["drop-in", JR] / min(cpu[name, 0.0] for name in ("autograd", "drop-in"))
    print(f"drop-in with regulariser / the faster without it: {best:.2f}")
    print(f"autograd / drop-in, with regulariser: {cpu['autograd', JR] / cpu['drop-in', JR]:.2f}")
    of_all = {1: wall}
    if threads > 1:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
        del ways[KEPT, 0.0], ways[KEPT, JR]  # the other threads keep what they began with
        of_all[threads] = medians(ways)[0]
    print("\nreference / drop-in, wall time        without       with regulariser")
    for number, times in of_all.items():
        off, on = (times["reference", jr] / times["drop-in", jr] for jr in (0.0, JR))
        print(f"{number} threads {off:34.1f} {on:19.1f}")
    torch.set_num_threads(1)
    rows_of_table_1(pixels, y)


if __name__ == "__main__":
    main()
