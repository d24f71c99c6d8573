"""Figures 8 and 9: which solution of modular addition does a transformer learn under GrokAlign?

The one-layer transformer of Nanda et al. 2023 (arXiv 2301.05217) reads a, b and "=" and answers
a + b mod 113 (Section 4.3). Claims: GrokAlign keeps the embedding's Fourier norms even, a
classification-style solution, and does not bring grokking forward (Figure 8); with the embedding
fixed that is the only solution left, and GrokAlign does bring it forward (Figure 9).

    python modular_addition.py                                   # weight decay only, 55 min
    python modular_addition.py --jr 1e-3                         # Figure 8, 130 min
    python modular_addition.py --fixed_embedding --trainable_unembedding [--jr 1e-3]   # Figure 9
    python modular_addition.py --p 59 --train_fraction 0.4 --steps 5000   # under 3 min: it groks
    python sweep.py configs/figure_8.yaml     # both runs; then report.py figure_8
    python report.py frequency_norms default jr=0.001            # the embeddings' Fourier norms

Test pairs come in two kinds. One embedding serves both operands, so that (a, b) is solved once
(b, a) trains; `test_accuracy_unmirrored` is that of the pairs (a, b) with neither order training.
Jacobians, of the regulariser and of the alignment, are by the three token embeddings, that of "="
among them, as in the official code, and alignment is that of training pairs.
Verdict: results/modular_addition/README.md.
"""

from dataclasses import dataclass
from functools import partial

import torch

from lab.bench import Run, Shared, generator, option, parse, script, training
from lab.bench.files import first_step
from lab.bench.levels import GROKKED
from lab.bench.loop import above
from lab.bench.plots import metric_panels
from lab.data.modular import OPERATIONS, SPLITS, ModularTask, modular_addition
from lab.fast.modular_tables import ModularRegulariser, ModularTransformer
from lab.measures.events import grokking_events
from lab.measures.fourier import frequency_norms, gini
from lab.measures.progress_measures import progress
from utils import Centroids


@dataclass
class Options(Shared):
    """Section 4.3's set-up, that of Nanda et al."""

    p: int = option(113, "modulus, an odd prime", least=3)
    train_fraction: float = option(0.3, "share of the pairs that train", above=0, most=1)
    operation: str = option("add", "what is learnt, modulo p", choices=tuple(OPERATIONS))
    split: str = option(
        "pairs", "what trains or tests together: (a, b), or (a, b) and (b, a)", choices=SPLITS
    )
    d_model: int = option(128, "width of the residual stream", least=1)
    heads: int = option(4, "attention heads, a divisor of d_model", least=1, divides="d_model")
    d_mlp: int = option(512, "hidden units of the MLP", least=1)
    jr: float = option(0.0, "weight of the Jacobian regulariser, λ_Jac; the paper: 1e-3", least=0)
    fixed_embedding: bool = option(False, "train neither token embedding nor unembedding")
    trainable_unembedding: bool = option(
        False, "train the unembedding all the same, as in Section 4.3", needs="fixed_embedding"
    )
    lr: float = option(1e-3, "learning rate of full-batch AdamW", above=0)
    beta2: float = option(0.98, "AdamW's β₂", least=0, most=0.9999)
    weight_decay: float = option(1.0, "AdamW's decoupled weight decay", least=0)
    warmup: int = option(0, "updates of a rising learning rate; Nanda et al.: 10", least=0)
    loss_precision: str = option(
        "float64", "of the cross-entropy; official code: float32", choices=("float64", "float32")
    )
    stop_at: float | None = option(None, "test accuracy above which the run ends", above=0, most=1)
    steps: int = option(48_000, "full-batch updates", least=0)
    num_logs: int = option(48, "measurements, log-spaced, first and last included", least=2)


SUMS = ("add", "subtract")  # operations with waves in the answer, as many pairs to each answer
PANELS = {
    "accuracy": ("test_accuracy", "train_accuracy", "test_accuracy_unmirrored"),
    "centroid alignment (mean and range)": ("alignment", "alignment_min", "alignment_max"),
    "Gini coefficient": ("gini_embedding", "gini_unembedding", "gini_logit_map"),
}


def initial_network(o: Options) -> ModularTransformer:
    return ModularTransformer(o.p, o.d_model, o.heads, o.d_mlp, generator(o.seed, "network"))


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, precision: str) -> torch.Tensor:
    """In float64 as Nanda et al. do, for float32 rounds losses below 1e-7 to zero."""
    float64 = precision == "float64" and logits.device.type != "mps"  # which has none
    return torch.nn.functional.cross_entropy(logits.double() if float64 else logits.float(), labels)


def train(run: Run, o: Options, task: ModularTask) -> None:
    _, pairs, labels, train_set, test_set = task = task.to(run.device)
    x, y, unmirrored = pairs[train_set], labels[train_set], task.unmirrored()
    network = initial_network(o).to(run.device, o.torch_dtype())
    if o.fixed_embedding:
        network.token_embedding.requires_grad_(False)
        network.unembedding.requires_grad_(o.trainable_unembedding)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, o.lr, betas=(0.9, o.beta2), weight_decay=o.weight_decay, fused=True
    )
    loss_fn = partial(cross_entropy, precision=o.loss_precision)
    regulariser = ModularRegulariser(network, generator=run.generator("projections"))
    centroids = Centroids(network.from_points)

    def measure(step: int) -> dict[str, torch.Tensor]:
        logits = network.grid().flatten(0, 1)  # of all pairs, in their order
        right = (logits.argmax(1) == labels).to(logits.dtype)
        alignments = centroids(network.points(x)).alignments
        logit_map = network.unembedding @ network.mlp_out  # Nanda et al.'s W_L
        return {
            "loss": loss_fn(logits[train_set], y),
            "test_loss": loss_fn(logits[test_set], labels[test_set]),
            "train_accuracy": right[train_set].mean(),
            "test_accuracy": right[test_set].mean(),
            "test_accuracy_unmirrored": right[unmirrored].mean(),
            "alignment": alignments.mean(),
            "alignment_min": alignments.min(),
            "alignment_max": alignments.max(),
            "gini_embedding": gini(frequency_norms(network.token_embedding[: o.p])),  # without "="
            "gini_unembedding": gini(frequency_norms(network.unembedding)),
            "gini_logit_map": gini(frequency_norms(logit_map)),
            **(progress(logits, labels, train_set, loss_fn) if o.operation in SUMS else {}),
        }

    when = {"stop": above("test_accuracy", o.stop_at), "variant": lambda step: min(step, o.warmup)}
    for step in training(run, measure, **when, network=network, optimiser=optimiser):
        if o.warmup > 0:
            optimiser.param_groups[0]["lr"] = o.lr * min(1, (step + 1) / o.warmup)
        outputs, norm = regulariser.outputs_and_norm(x) if o.jr > 0 else (network(x), 0.0)
        loss = loss_fn(outputs, y) + o.jr * norm
        optimiser.zero_grad()
        loss.backward(inputs=parameters)
        optimiser.step()

    m = run.metrics()
    unmirrored = first_step(m, "test_accuracy_unmirrored", GROKKED)
    run.store({**grokking_events(m), "grokked_at_unmirrored": unmirrored})


@script
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    task = modular_addition(o.p, o.train_fraction, o.seed, operation=o.operation, split=o.split)
    run = Run("modular_addition", o)
    if not run.results():
        train(run, o, task)
    run.save_figure(metric_panels({"": run.metrics()}, PANELS, run.begun_by))
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
