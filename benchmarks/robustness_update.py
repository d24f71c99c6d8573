"""An update of Figure 5's training, with and without the regulariser, and by torch's own layers.

    python benchmarks/robustness_update.py

"torch's layers" is the same update with Conv2d and ReLU, where autograd differentiates vᵀJ by its
own rule: what lab/fast/convolutions.py replaces. CPU time of this process on one thread, which
other work on the machine hardly changes, float32. All ways take their turns, first for the paper's
network and batches of 256, then for the laptop's of configs/figure_5.yaml, 8 filters and batches
of 64.

A convolution that is not made by products of this shape can pass 100 % of the matrix rate.

Result, one thread of a shared machine: 422 ms without the regulariser, at 118 % of the matrix rate;
906 ms with it, at 110 %, where torch's layers take 1280 ms, at 84 %. The laptop's: 17 and 41 ms, at
40 and 35 %.
"""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import command_line, in_turns, settle, table
from delayed_robustness import CLIP
from lab.bench.seeds import generator
from lab.fast.convolutions import ConvReLU, convolutional_network
from utils import JacobianRegulariser

SIZES = ((32, 256), (8, 64))  # filters, images of a batch
JR, ROUNDS = 1e-3, 5


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


def main(argv=None):
    """Prints milliseconds an update, and the ratios."""
    command_line(__doc__).parse_args(argv)
    settle()
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
    timed = in_turns(ways, ROUNDS)
    print(f"torch {torch.__version__}, 1 thread, {filters} filters, {batch} images, float32")
    for name in models:
        kinds = zip(
            ("without", "with regulariser"), (timed[name, jr] for jr in (0, JR)), strict=True
        )
        table(name, dict(kinds))
    plain, ours = (timed[name, JR].seconds for name in models)
    print(f"ConvReLU buys, with the regulariser: {plain / ours:.2f} times")
    least = min(found.seconds for (_, jr), found in timed.items() if jr == 0)
    print(f"the script's, with regulariser / the fastest without: {ours / least:.2f}")


if __name__ == "__main__":
    main()
