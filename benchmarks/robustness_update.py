"""An update of Figure 5's training, with and without the regulariser, and by torch's own layers.

    python benchmarks/robustness_update.py

"torch's layers" is the same update with Conv2d and ReLU, where autograd differentiates vᵀJ by its
own rule: what lab/fast/convolutions.py replaces. CPU time of this process on one thread, which
other work on the machine hardly changes, float32. All ways take their turns, first for the paper's
network and batches of 256, then for the laptop's of configs/figure_5.yaml, 8 filters and batches
of 64.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from delayed_robustness import CLIP
from lab.bench.seeds import generator
from lab.fast.convolutions import ConvReLU, convolutional_network
from utils import JacobianRegulariser

SIZES = ((32, 256), (8, 64))  # filters, images of a batch
JR, REPEATS = 1e-3, 7


def with_torch_layers(network):
    """The same network, weights shared, of Conv2d and ReLU."""
    layers = []
    for layer in network:
        if isinstance(layer, ConvReLU):
            plain = nn.Conv2d(layer.in_channels, layer.out_channels, 3, layer.stride, 1, bias=False)
            plain.weight = layer.weight
            layers += [plain, nn.ReLU(inplace=True)]
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def updating(network, optimiser, x, targets, jr):
    """A function that makes one update, as the script does."""
    parameters = list(network.parameters())
    regulariser = JacobianRegulariser(network, generator=generator(0))

    def update():
        outputs, norm = regulariser.outputs_and_norm(x) if jr else (network(x), 0.0)
        loss = nn.functional.mse_loss(outputs, targets) + jr * norm
        optimiser.zero_grad()
        loss.backward(inputs=parameters)
        nn.utils.clip_grad_value_(parameters, CLIP)
        optimiser.step()

    return update


def main():
    """Prints milliseconds an update, and the ratios."""
    torch.set_num_threads(1)
    for filters, batch in SIZES:
        measure(filters, batch)


def measure(filters, batch):
    network = convolutional_network(filters, 10, generator(0))
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)
    x = torch.randn(batch, 3, 32, 32, generator=generator(1))
    targets = torch.eye(10)[torch.randint(0, 10, (batch,), generator=generator(2))]
    models = {"torch's layers": with_torch_layers(network), "ConvReLU": network}
    ways = {
        (name, jr): updating(model, optimiser, x, targets, jr)
        for name, model in models.items()
        for jr in (0, JR)
    }
    times = {way: [] for way in ways}
    for turn in range(REPEATS + 1):
        for way, update in ways.items():
            began = time.process_time()
            update()
            if turn:  # the first is a warm-up
                times[way].append(1e3 * (time.process_time() - began))
    cpu = {way: statistics.median(found) for way, found in times.items()}
    print(f"torch {torch.__version__}, 1 thread, {filters} filters, {batch} images, float32")
    print("ms of CPU time an update, median  without   with regulariser   ratio")
    for name in models:
        off, on = cpu[name, 0], cpu[name, JR]
        print(f"{name:26} {off:14.1f} {on:18.1f} {on / off:7.2f}")
    plain, ours = (cpu[name, JR] for name in models)
    print(f"ConvReLU buys, with the regulariser: {plain / ours:.2f} times")
    least = min(value for (_, jr), value in cpu.items() if jr == 0)
    print(f"the script's, with regulariser / the fastest without: {ours / least:.2f}")


if __name__ == "__main__":
    main()
