"""Figures 8 and 9: which solution of modular addition does a transformer learn under GrokAlign?

The one-layer transformer of Nanda et al. 2023 (arXiv 2301.05217) reads a, b and "=" and answers
a + b mod 113 (Section 4.3). Claims: GrokAlign keeps the embedding's Fourier norms even, a
classification-style solution, and does not bring grokking forward (Figure 8); with embedding and
unembedding fixed that is the only solution left, and GrokAlign does bring it forward (Figure 9).

    python modular_addition.py                                   # weight decay only
    python modular_addition.py --jr 1e-3                         # Figure 8
    python modular_addition.py --fixed_embedding                 # Figure 9, weight decay only
    python modular_addition.py --fixed_embedding --jr 1e-3       # Figure 9
    python modular_addition.py --compare RUN RUN                 # any of them in one figure

The 48,000 updates take 36 minutes on one CPU thread with weight decay alone, 106 with GrokAlign.
In under three minutes, a smaller modulus groks in the same way, by step 3,453:

    python modular_addition.py --p 59 --train_fraction 0.4 --steps 5000

Test pairs come in two kinds. One embedding serves both operands, so that (a, b) is solved once
(b, a) trains; `test_accuracy_unmirrored` is that of the pairs (a, b) with neither order training.

Jacobians, of the regulariser and of the alignment, are by the three token embeddings, that of "="
among them, as in the official code, and alignment is that of training pairs.

Result, 2 seeds (--steps 10000, 15000 with weight decay alone). With weight decay it groks at step
5,393 and 8,994; with GrokAlign it has come to 0.88 and 0.36 at 10,000, and the Gini coefficients
of embedding and unembedding to 0.17–0.21 and 0.09–0.13 instead of 0.35. With both fixed,
unmirrored test pairs stay at 0.001 with weight decay and rise to 0.23 with GrokAlign, in both
seeds. Until step 2,000 the test accuracy is that of mirror images. Mean alignment stays
within ±0.08.
"""

from dataclasses import dataclass

import torch

from lab import fourier, plots
from lab.commands import command
from lab.compare import compare
from lab.errors import UserError
from lab.modular import OPERATIONS, SPLITS, ModularTask, ModularTransformer, modular_addition
from lab.options import Shared, option, parse
from lab.runs import Run, first_step
from lab.seeds import generator
from lab.training import train
from utils import Centroids, JacobianRegulariser

MEMORISED, GROKKED = 0.99, 0.95  # training and test accuracy that count as such
KEY_FREQUENCIES = 5
SUMS = ("add", "subtract")  # operations with waves in the answer, as many pairs to each answer

# Panels of --compare: what a column, or more, shows of each run.
COMPARED = {
    "accuracy": ("test_accuracy", "test_accuracy_unmirrored", "train_accuracy"),
    "centroid alignment (mean)": ("alignment",),
    "Gini coefficient": ("gini_embedding", "gini_unembedding", "gini_logit_map"),
}


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
    heads: int = option(4, "attention heads, a divisor of d_model", least=1)
    d_mlp: int = option(512, "hidden units of the MLP", least=1)
    jr: float = option(0.0, "weight of the Jacobian regulariser, λ_Jac; the paper: 1e-3", least=0)
    fixed_embedding: bool = option(False, "train neither token embedding nor unembedding")
    trainable_unembedding: bool = option(
        False, "with --fixed_embedding, train the unembedding, as the official code does"
    )
    lr: float = option(1e-3, "learning rate of full-batch AdamW", above=0)
    beta2: float = option(0.98, "AdamW's β₂", least=0, most=0.9999)
    weight_decay: float = option(1.0, "AdamW's decoupled weight decay", least=0)
    warmup: int = option(
        0, "updates over which the learning rate rises from 0; Nanda et al.: 10", least=0
    )
    loss_precision: str = option(
        "float64",
        "precision of the cross-entropy, trained on and measured; the official code's: float32",
        choices=("float64", "float32"),
    )
    stop_at: float | None = option(None, "test accuracy above which the run ends", above=0, most=1)
    steps: int = option(48_000, "full-batch updates", least=0)
    num_logs: int = option(48, "measurements, log-spaced, first and last included", least=2)


def network_of(o: Options) -> ModularTransformer:
    return ModularTransformer(o.p, o.d_model, o.heads, o.d_mlp, generator(o.seed, "network"))


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, precision: str) -> torch.Tensor:
    """In float64 as Nanda et al. do, for float32 rounds losses below 1e-7 to zero."""
    float64 = precision == "float64" and logits.device.type != "mps"  # which has none
    return torch.nn.functional.cross_entropy(logits.double() if float64 else logits.float(), labels)


def progress(
    logits: torch.Tensor, labels: torch.Tensor, train_set: torch.Tensor, precision: str
) -> dict[str, torch.Tensor]:
    """Progress measures of Nanda et al. by the strongest waves in the answer, at this step.

    Restricted loss, of all pairs: of these waves and the mean alone. Excluded loss, of the
    training pairs: of the logits without these waves. Nanda et al. take the waves of the final
    network instead.

    Args:
        logits: (p², p) of all pairs, p to each answer.
        labels: (p²,), the answers.
        train_set: (n,), indices of the training pairs.
        precision: of the losses.
    """
    p = logits.shape[1]
    by_answer = torch.zeros_like(logits[:p]).index_add(0, labels, logits) / p  # (answers, classes)
    norms = fourier.frequency_norms(by_answer)
    keys = norms.topk(min(KEY_FREQUENCIES, len(norms))).indices + 1
    waves = fourier.component(by_answer, keys)
    y = labels[train_set]
    return {
        "restricted_loss": cross_entropy(
            logits.mean(0) + waves, torch.arange(p, device=labels.device), precision
        ),
        "excluded_loss": cross_entropy(logits[train_set] - waves[y], y, precision),
        **{f"key_frequency_{i}": key for i, key in enumerate(keys, start=1)},
    }


def train_network(run: Run, o: Options, task: ModularTask) -> None:
    pairs, labels, train_set, test_set, unmirrored = (
        part.to(run.device)
        for part in (task.pairs, task.labels, task.train, task.test, task.unmirrored())
    )
    x, y = pairs[train_set], labels[train_set]
    precision = o.loss_precision
    network = network_of(o).to(run.device, o.torch_dtype())
    if o.fixed_embedding:
        network.token_embedding.requires_grad_(False)
        network.unembedding.requires_grad_(o.trainable_unembedding)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, o.lr, betas=(0.9, o.beta2), weight_decay=o.weight_decay, fused=True
    )

    def of_embeddings(points: torch.Tensor) -> torch.Tensor:  # (B, 3, d_model) → (B, p)
        return network.from_embeddings(points).flatten(1)

    projections = generator(o.seed, "projections")
    regulariser = JacobianRegulariser(of_embeddings, generator=projections)
    centroids = Centroids(of_embeddings)

    def update(step: int) -> torch.Tensor:
        if o.warmup > 0:
            optimiser.param_groups[0]["lr"] = o.lr * min(1, (step + 1) / o.warmup)
        if o.jr > 0:
            outputs, jacobian_norm = network.outputs_and_norm(x, regulariser.directions)
            loss = cross_entropy(outputs, y, precision) + o.jr * jacobian_norm
        else:
            loss = cross_entropy(network(x), y, precision)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss

    def measure(step: int) -> dict[str, torch.Tensor]:
        logits = network.grid().flatten(0, 1)  # of all pairs, in their order
        right = (logits.argmax(1) == labels).to(logits.dtype)
        tokens = torch.nn.functional.pad(x, (0, 1), value=o.p)  # a, b, "="
        alignments = centroids(network.embed(tokens)).alignments
        matrices = {
            "embedding": network.token_embedding[: o.p],  # without "="
            "unembedding": network.unembedding,
            "logit_map": network.unembedding @ network.mlp_out,  # Nanda et al.'s W_L
        }
        return {
            "loss": cross_entropy(logits[train_set], y, precision),
            "test_loss": cross_entropy(logits[test_set], labels[test_set], precision),
            "train_accuracy": right[train_set].mean(),
            "test_accuracy": right[test_set].mean(),
            "test_accuracy_unmirrored": right[unmirrored].mean(),
            "alignment": alignments.mean(),
            "alignment_min": alignments.min(),
            "alignment_max": alignments.max(),
            **{
                f"gini_{name}": fourier.gini(fourier.frequency_norms(matrix))
                for name, matrix in matrices.items()
            },
            **(progress(logits, labels, train_set, precision) if o.operation in SUMS else {}),
        }

    train(
        run,
        update,
        measure,
        {"network": network, "optimiser": optimiser, "projections": projections},
        stop=lambda row: o.stop_at is not None and row["test_accuracy"] > o.stop_at,
    )
    m = run.metrics()
    run.store(
        {
            "memorised_at": first_step(m, "train_accuracy", MEMORISED),
            "grokked_at": first_step(m, "test_accuracy", GROKKED),
            "grokked_at_unmirrored": first_step(m, "test_accuracy_unmirrored", GROKKED),
        }
    )


def figure(run: Run, o: Options) -> None:
    m = run.metrics()
    blue, vermilion, green, *_, black = plots.COLOURS
    drawing, panels = plots.panels(2, run.command(), rows=2)
    (accuracies, alignment), (ginis, norms) = panels
    alignment.fill_between(
        m["step"], m["alignment_min"], m["alignment_max"], color=blue, alpha=0.25, lw=0
    )
    lines = (
        (accuracies, "train_accuracy", "train", black, "--"),
        (accuracies, "test_accuracy", "test", black, "-"),
        (accuracies, "test_accuracy_unmirrored", "test, neither order trains", blue, "-"),
        (alignment, "alignment", "mean, range shaded", blue, "-"),
        (ginis, "gini_embedding", "embedding $W_E$", vermilion, "-"),
        (ginis, "gini_unembedding", "unembedding $W_U$", green, "-"),
        (ginis, "gini_logit_map", "logit map $W_U W_{out}$", green, "--"),
    )
    plots.curves(m, lines)
    for axes in (accuracies, alignment, ginis):
        plots.step_axis(axes, m["step"][-1])
    before, after = network_of(o).state_dict(), run.saved_state("network")
    for moment, state, style in (("before", before, ":"), ("after", after, "-")):
        for name, colour in (("token_embedding", vermilion), ("unembedding", green)):
            of_frequency = fourier.frequency_norms(state[name][: o.p])
            norms.plot(
                range(1, len(of_frequency) + 1),
                of_frequency,
                color=colour,
                ls=style,
                label=f"{name.removeprefix('token_')}, {moment}",
            )
    norms.set_xlabel("frequency")
    norms.set_ylim(0, 1.3 * norms.dataLim.y1)  # room for the legend
    labels = ("accuracy", "centroid alignment", "Gini coefficient", "norm of a frequency")
    for axes, label in zip(panels.flat, labels, strict=True):
        axes.set_ylabel(label)
        axes.legend(loc="upper left", ncols=2 if axes is norms else 1)
    run.save_figure(drawing)


def check(o: Options) -> None:
    """Raises UserError for options that do not go together."""
    if o.d_model % o.heads:
        raise UserError(f"--heads takes a divisor of --d_model {o.d_model}, got {o.heads}")
    if o.trainable_unembedding and not o.fixed_embedding:
        raise UserError("--trainable_unembedding goes with --fixed_embedding, which is not given")


@command
def main(argv=None) -> None:
    o = parse(Options, __doc__, argv)
    if o.compare:
        compare("modular_addition", o, COMPARED)
        return
    check(o)
    task = modular_addition(o.p, o.train_fraction, o.seed, operation=o.operation, split=o.split)
    run = Run("modular_addition", o)
    if not run.finished:
        train_network(run, o, task)
    figure(run, o)
    print(run.folder)


if __name__ == "__main__":
    raise SystemExit(main())
