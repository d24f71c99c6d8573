"""Figure 5: GrokAlign makes a convolutional network robust; weight decay does not.

A network of six convolutions and two linear layers, without biases, learns 1,024 images of CIFAR-10
under the mean-squared error (Section 4.3). Claim: with weight decay alone centroid alignment stays
low and robustness to perturbations of 4/255 declines; with GrokAlign the alignment rises while the
Jacobians near rank one, and robustness comes with it.

    python delayed_robustness.py                               # weight decay, 12 h of a CPU core
    python delayed_robustness.py --jr 0.001                    # GrokAlign, 26 h; better on a GPU
    python report.py figure_5                                  # both in one figure
    python report.py figure_6 default jr=0.001                 # Figure 6, the centroids
    python sweep.py configs/figure_5.yaml                      # both, small: 32 and 68 min
    python delayed_robustness.py --filters 8 --points 256 --batch_size 64 --steps 10000 --jr 0.001

The last, in less than ten minutes, shows which way GrokAlign leads; robustness takes longer.

Training, the regulariser and the other measurements are in normalised pixels, which the network
sees: ‖J‖ by raw pixels is about four times as large, and λ_Jac would mean something else. What is
attacked takes raw pixels in [0, 1] and normalises them; the attack is checked to stay there and
within 4/255. The official code attacks the network behind the normalisation, with images that the
attack clips to [0, 1] all the same; accuracy_official_protocol is what it would have recorded.

Verdict: results/delayed_robustness/README.md.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from lab.bench import Run, generator, option, parse, script, training
from lab.bench.loop import log_steps
from lab.bench.plots import metric_panels
from lab.data import cifar
from lab.data.cifar import CLASSES, CifarOptions
from lab.fast.convolutions import convolutional_network
from lab.measures.attacks import ATTACKS, adversarial_points, under_attack
from lab.measures.losses import accuracy
from lab.networks.mlp import Normalisation
from utils import PC1, Centroids, JacobianRegulariser

ATTACKED = "attack " + " ".join(ATTACKS)  # the values of --attack with which the others count


@dataclass
class Options(CifarOptions):
    """Figure 5's set-up."""

    filters: int = option(32, "channels of the first convolutions, doubled twice", least=1)
    loss_fn: str = option("MSE", "the loss", choices=("MSE", "CrossEntropy"))
    jr: float = option(0.0, "weight of the Jacobian regulariser, λ_Jac; the paper: 0.001", least=0)
    lr: float = option(1e-3, "learning rate of AdamW", above=0)
    weight_decay: float = option(1e-3, "AdamW's decoupled weight decay", least=0)
    batch_size: int = option(256, "points of an update", least=1)
    steps: int = option(144_000, "updates; the paper: 36,000 passes of four", least=0)
    epochs: int | None = option(None, "passes over the data; replaces --steps", least=0)
    num_logs: int = option(128, "measurements, log-spaced, the first and last included", least=2)
    attack: str = option(
        "apgd-ce",
        "apgd-ce, standard (AutoAttack's four attacks, of which it is the first), or none",
        choices=(*ATTACKS, "none"),
    )
    attack_epsilon: float = option(
        4 / 255, "largest change of a pixel in [0, 1]; 4/255", above=0, most=1, needs=ATTACKED
    )
    attack_points: int = option(1024, "first test points attacked", least=1, needs=ATTACKED)
    num_attacks: int = option(32, "attacks while training, log-spaced", least=2, needs=ATTACKED)

    def __post_init__(self) -> None:
        if self.epochs is not None:
            self.steps = self.epochs * -(-self.points // self.batch_size)


PC1_POINTS = 64  # training points whose whole Jacobians are measured, as in the official code
CLIP = 1.0  # largest size of a gradient's entry
AT_ONCE = 128  # points of a measurement, which bounds its memory
OFFICIAL = "accuracy_official_protocol"
PANELS = {
    "mean PC1, σ₁² / Σσ²": ("pc1",),
    "mean centroid alignment": ("alignment",),
    "test accuracy": ("test_accuracy", "accuracy_apgd_ce", OFFICIAL, "accuracy_standard"),
}


def train(run: Run, o: Options, data: cifar.Cifar) -> None:
    raw_x, y, raw_x_test, y_test = data
    normalise = Normalisation(cifar.MEAN, cifar.STD).to(raw_x)
    x, x_test = normalise(raw_x), normalise(raw_x_test)
    targets = one_hot(y, CLASSES).to(x.dtype) if o.loss_fn == "MSE" else y
    loss_fn = mse_loss if o.loss_fn == "MSE" else cross_entropy
    network = convolutional_network(o.filters, CLASSES, generator(o.seed, "weights")).to(x)
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, o.lr, weight_decay=o.weight_decay, fused=True)
    batch = run.batches(len(x), o.batch_size)
    whole = torch.nn.Sequential(normalise, network)  # takes raw pixels
    regulariser = JacobianRegulariser(network, generator=run.generator("projections"))
    pc1, norm_at = PC1(network), JacobianRegulariser(network, num_projections=None)
    centroids = Centroids(network, batch_size=AT_ONCE)
    attacks = set(log_steps(o.steps, o.num_attacks))

    def measure(step: int) -> dict[str, float | torch.Tensor]:
        outputs, followed = scores(network, x), x[:PC1_POINTS]
        row = {
            "loss": loss_fn(outputs, targets),
            "train_accuracy": accuracy(outputs, y),
            "test_accuracy": accuracy(scores(network, x_test), y_test),
            "pc1": pc1(followed).mean(),
            "alignment": centroids(x).alignments.mean(),
            "jacobian_norm": norm_at(followed),
        }
        if o.attack == "none":
            return row
        right, official = torch.nan, torch.nan
        if step in attacks:
            raw, z, labels = (part[: o.attack_points] for part in (raw_x_test, x_test, y_test))
            attack = o.attack, o.attack_epsilon
            draws = [generator(o.seed, "attack", step) for _ in range(2)]
            right = under_attack(whole, raw, labels, *attack, draws[0]).accuracy
            moved = adversarial_points(network, z, labels, *attack, draws[1])
            official = accuracy(scores(network, moved), labels)
        return row | {f"accuracy_{o.attack.replace('-', '_')}": right, OFFICIAL: official}

    measured = attacks | set(log_steps(o.steps, o.num_logs))
    for step in training(run, measure, measured=measured, network=network, optimiser=optimiser):
        points = batch(x)
        outputs, norm = regulariser.outputs_and_norm(points) if o.jr > 0 else (network(points), 0.0)
        loss = loss_fn(outputs, batch(targets)) + o.jr * norm
        optimiser.zero_grad()
        loss.backward(inputs=parameters)
        torch.nn.utils.clip_grad_value_(parameters, CLIP)
        optimiser.step()


def scores(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Outputs (N, C), a part of the points at a time."""
    return torch.cat([network(part) for part in x.split(AT_ONCE)])


@script
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    data = cifar.load(o)
    run = Run("delayed_robustness", o)
    train(run, o, data)
    run.save_figure(metric_panels({"": run.metrics()}, PANELS, run.begun_by))
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
