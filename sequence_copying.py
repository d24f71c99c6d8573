"""Delayed generalisation on copying, a task that the paper does not have.

A one-layer transformer reads a sequence of symbols, then as many blanks, and fills the blanks with
it. Its initial weights are three times too large, which delays generalisation. Claims under test:
centroid alignment rises when the network generalises; GrokAlign brings that forward.

    python sequence_copying.py                    # 28 s; it generalises
    python sequence_copying.py --jr 0.01          # with GrokAlign
    python sequence_copying.py --random_labels    # control: nothing to generalise to
    python sweep.py sequence_copying.py --jr 0 0.001 0.01 --seed 0:3

Jacobians are by the token embeddings, blanks included. Cross-entropy leaves the sum of all logits
free, and with it the centroid, but not the margin, what right logits have over the mean of all.
An episode is one sequence: its mean reward is the accuracy if each right symbol is rewarded, and
the sequence accuracy if only all of them are. Smoothness is how little the logits change when one
symbol does, and how much of that falls on other answers than its own.
Verdict: results/sequence_copying/README.md.
"""

from dataclasses import dataclass

import torch

from lab.bench import Run, Shared, double, generator, option, parse, script, training
from lab.bench.plots import metric_panels
from lab.data.tasks import sequences_to_copy
from lab.measures.events import grokking_events
from lab.measures.losses import cross_entropy
from lab.measures.smoothness import changes_by_one_symbol
from lab.networks.transformer import OneLayerTransformer
from utils import CentroidMetrics, Centroids, JacobianRegulariser


@dataclass
class Options(Shared):
    """A task small enough for seconds, and β₂ and weight decay of Nanda et al. 2023."""

    samples: int = option(40, "training sequences", least=1)
    test_samples: int = option(1000, "test sequences, none of which trains", least=1)
    batch_size: int | None = option(None, "training sequences of one update; none for all", least=1)
    lr: float = option(1e-3, "learning rate of AdamW", above=0)
    weight_decay: float = option(1.0, "AdamW's decoupled weight decay", least=0)
    jr: float = option(0.0, "weight of the Jacobian regulariser, λ_Jac", least=0)
    random_labels: bool = option(False, "answers that are uniform draws, a control")
    symbols: int = option(8, "different symbols", least=2)
    length: int = option(6, "symbols in a sequence", least=1)
    init_scale: float = option(3.0, "factor on the initial weights", above=0)
    beta2: float = option(0.98, "AdamW's β₂", least=0, most=0.9999)
    d_model: int = option(64, "width of the residual stream", least=1)
    heads: int = option(4, "attention heads, a divisor of d_model", least=1, divides="d_model")
    d_mlp: int = option(256, "hidden units of the MLP", least=1)
    steps: int = option(3000, "updates of the parameters", least=0)
    num_logs: int = option(96, "measurements, log-spaced, first and last included", least=2)


PROJECTIONS = 8  # directions that the measured Jacobian norm is estimated from, if it has more
PANELS = {
    "accuracy": ("test_accuracy", "train_accuracy", "test_sequence_accuracy"),
    "alignment (mean)": ("test_margin_alignment", "margin_alignment", "alignment"),
    "Frobenius norm": ("jacobian_norm", "parameter_norm"),
    "when one symbol changes": ("logit_change", "change_elsewhere"),
}


def margins(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # (B, L · symbols), … → (B,)
    logits = outputs.unflatten(1, (y.shape[1], -1))
    return (logits.gather(2, y[..., None]).squeeze(2) - logits.mean(2)).sum(1)


def train(run: Run, o: Options, data: tuple[torch.Tensor, torch.Tensor]) -> None:
    tokens, answers = (part.to(run.device) for part in data)
    x, x_test = tokens.split([o.samples, o.test_samples])
    y, y_test = answers.split([o.samples, o.test_samples])
    draws = generator(o.seed, "weights")
    network = OneLayerTransformer(  # its last token is the blank
        o.symbols + 1, 2 * o.length, o.symbols, o.d_model, o.heads, o.d_mlp, draws, o.init_scale
    ).to(run.device, o.torch_dtype())
    embed, parameters = network.embed, list(network.parameters())
    optimiser = torch.optim.AdamW(
        parameters, o.lr, (0.9, o.beta2), weight_decay=o.weight_decay, fused=True
    )
    batch = run.batches(o.samples, o.batch_size)

    def model(points: torch.Tensor) -> torch.Tensor:  # (B, 2L, d_model) → (B, L · symbols)
        return network.from_embeddings(points, last=o.length).flatten(1)

    regulariser = JacobianRegulariser(model, generator=run.generator("projections"))
    directions = min(PROJECTIONS, o.length * o.symbols)

    def logits_of(sequences: torch.Tensor) -> torch.Tensor:  # (B, L) → (B, L, symbols)
        with_blanks = torch.nn.functional.pad(sequences, (0, o.length), value=o.symbols)
        return network(with_blanks, last=o.length)

    def of_margin(x: torch.Tensor, y: torch.Tensor) -> CentroidMetrics:
        return Centroids(lambda points: margins(model(points), y))(embed(x))

    def measure(step: int) -> dict[str, torch.Tensor]:
        outputs, outputs_test = model(embed(x)), model(embed(x_test))
        right = outputs.unflatten(1, (o.length, -1)).argmax(2) == y
        right_test = outputs_test.unflatten(1, (o.length, -1)).argmax(2) == y_test
        draws = generator(o.seed, "measured projections", step)
        others = of_margin(x_test[: o.samples], y_test[: o.samples])
        return {
            "loss": cross_entropy(outputs, y),
            "train_accuracy": double(right).mean(),
            "test_accuracy": double(right_test).mean(),
            "parameter_norm": torch.stack([p.norm() for p in parameters]).norm(),
            "jacobian_norm": JacobianRegulariser(model, directions, generator=draws)(embed(x)),
            "alignment": Centroids(model)(embed(x)).alignments.mean(),
            "margin_alignment": of_margin(x, y).alignments.mean(),
            "test_margin_alignment": others.alignments.mean(),
            "train_sequence_accuracy": double(right.all(1)).mean(),
            "test_sequence_accuracy": double(right_test.all(1)).mean(),
            **changes_by_one_symbol(logits_of, x_test[: o.samples, : o.length], o.symbols),
        }

    for step in training(run, measure, network=network, optimiser=optimiser):
        points = embed(batch(x))
        outputs, norm = regulariser.outputs_and_norm(points) if o.jr > 0 else (model(points), 0.0)
        loss = cross_entropy(outputs, batch(y)) + o.jr * norm
        optimiser.zero_grad()
        loss.backward(inputs=parameters)
        optimiser.step()

    run.store(grokking_events(run.metrics()))


@script
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    number = o.samples + o.test_samples
    data = sequences_to_copy(number, o.symbols, o.length, o.seed, o.random_labels)
    run = Run("sequence_copying", o)
    train(run, o, data)
    run.save_figure(metric_panels({"": run.metrics()}, PANELS, run.begun_by, events=run.results()))
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
