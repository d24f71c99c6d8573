"""Brings runs of older code up to date: `python -m lab.migrate results`, or any folder of runs.

Columns of metrics.csv and results get the names they have now, and config.yaml the options that
came after the run was made, with what the older code did, and loses those that are no longer there.
A folder whose name was made from the options gets the one that they make now. Numbers stay as they
are; a second call changes nothing.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import torch
import yaml

from lab.bench import cli
from lab.bench.errors import UserError
from lab.bench.files import read_config
from lab.bench.options import WRITTEN_BY_RUNS

# script -> option that came later -> what the code did before.
ADDED: dict[str, dict[str, Any]] = {
    "accelerating_grokking": {"order": "shuffled"},
    "inhibiting_generalisation": {"clip": 0.0},
    "linear_regions": {"loss_fn": "CrossEntropy", "clip": 0.0},
    "modular_addition": {"loss_precision": "float64"},
    "spectral_shift": {"decay": "decoupled"},
}
# script -> old name -> new name, of columns and of results.
RENAMED: dict[str, dict[str, str]] = {
    "comparison_to_ntk": {
        "alignment": "alignment_of_point",
        "centroid_norm": "centroid_norm_of_point",
        "inner_product": "inner_product_of_point",
    },
    "delayed_robustness": {"centroid_alignment": "alignment"},
    "jacobian_rank": {
        "pc1_mean": "pc1",
        "pc1_least": "pc1_min",
        "mean_alignment": "alignment",
    },
    "modular_addition": {
        "alignment_mean": "alignment",
        "t_memorise": "memorised_at",
        "t_grok": "grokked_at",
        "t_grok_unmirrored": "grokked_at_unmirrored",
    },
    "order_parameters": {
        "alignment_summed": "kernel_alignment_summed",
        "alignment_trace": "kernel_alignment_trace",
        "alignment_hidden": "kernel_alignment_hidden",
        "dominance": "frequency_dominance",
        "t_memorise": "memorised_at",
        "t_grok": "grokked_at",
    },
    "sequence_copying": {
        "mean_alignment": "alignment",
        "t_memorise": "memorised_at",
        "t_grok": "grokked_at",
    },
    "sparse_parity": {
        "mean_alignment": "alignment",
        "t_memorise": "memorised_at",
        "t_grok": "grokked_at",
    },
    "xor_grokking": {
        "mean_alignment": "alignment",
        "centroid_alignment": "alignment_of_point",
        "centroid_norm": "centroid_norm_of_point",
        "centroid_inner_product": "inner_product_of_point",
    },
}
# Once one script, told apart by the option `task`.
TASKS = {"parity": "sparse_parity", "copy": "sequence_copying"}


def migrate(folder: Path) -> list[str]:
    """Brings one run up to date; returns what was done, a line each.

    Raises:
        UserError: if config.yaml is damaged, or the folder's new name is taken.
    """
    done = []
    if folder.parent.name == "delayed_tasks":
        script = TASKS[read_config(folder)["task"]]
        target = folder.parent.with_name(script) / folder.name
        target.parent.mkdir(exist_ok=True)
        done.append(f"{folder}: moved to {target}")
        folder = folder.rename(target)
    script = folder.parent.name
    names = RENAMED.get(script, {})

    metrics = folder / "metrics.csv"
    if metrics.exists():
        head, *rows = metrics.read_text().split("\n")
        new = ",".join(_renamed(column, names) for column in head.split(","))
        if new != head:
            metrics.write_text("\n".join([new, *rows]))
            done.append(f"{metrics}: columns renamed")
            if (checkpoint := folder / "checkpoint.pt").exists():
                content = torch.load(checkpoint, map_location="cpu", weights_only=True)
                content["rows"] = _with_names(content["rows"], names)
                torch.save(content, checkpoint)

    config = read_config(folder)
    options = _options(script)
    if options is None or config.get("scaling"):  # fifty networks in one run, as Figure 10 once was
        return done
    known = options.__dataclass_fields__
    missing = {k: v for k, v in ADDED.get(script, {}).items() if k not in config}
    gone = [k for k in config if k not in known and k not in WRITTEN_BY_RUNS]
    results = _with_names(config.get("results"), names)
    if missing or gone or results != config.get("results"):
        kept = {k: v for k, v in config.items() if k in known}
        config = {**kept, **missing, "provenance": config["provenance"]}
        config |= {} if results is None else {"results": results}
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        (folder / "config.yaml").write_text(text)
        done.append(f"{folder / 'config.yaml'}: added {missing}, removed {gone}")
    if config.get("name") is None:
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        name = options(**{k: v for k, v in given.items() if k in known}).run_name()
        if name != folder.name:
            target = folder.with_name(name)
            if target.exists():
                raise UserError(f"{folder} should be called {name}, which is there already")
            folder.rename(target)
            done.append(f"{folder}: renamed to {name}")
    return done


def _renamed(column: str, names: dict[str, str]) -> str:
    """`alignment[seed=0]` is a column of the quantity `alignment`."""
    quantity, bracket, which = column.partition("[")
    return names.get(quantity, quantity) + bracket + which


def _with_names(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {_renamed(k, names): _with_names(v, names) for k, v in value.items()}
    return [_with_names(v, names) for v in value] if isinstance(value, list) else value


def _options(script: str) -> Any:
    try:
        return importlib.import_module(script).Options
    except ModuleNotFoundError:  # of a script that is not ours
        return None


@cli.script
def main(argv: list[str] | None = None) -> None:
    """Every run in `<root>/<script>/`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("roots", nargs="+", type=Path, help="folders of <script>/<run>")
    for root in parser.parse_args(argv).roots:
        configs = sorted(root.glob("*/*/config.yaml"))
        if not configs:
            raise UserError(f"a folder of runs has <script>/<run>/config.yaml; {root} has none")
        for config in configs:
            for line in migrate(config.parent):
                print(line)


if __name__ == "__main__":
    raise SystemExit(main())
