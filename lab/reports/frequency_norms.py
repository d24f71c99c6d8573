"""Fourier norms of embedding and unembedding of modular_addition's runs, at first and at last.

    python report.py frequency_norms default jr=0.001

Runs are given by their folder or by name, and need their checkpoints.
"""

from __future__ import annotations

import textwrap

from lab.bench import plots
from lab.bench.checkpoints import copied, finished_checkpoint, restore
from lab.bench.errors import UserError
from lab.bench.files import read_config, run_folder, short_names
from lab.bench.takes import Takes
from lab.measures.fourier import frequency_norms
from lab.reports import Request
from lab.reports._words import save

SCRIPT = "modular_addition"


def report(request: Request) -> None:
    """Draws a panel for each run: the norm of each frequency in both matrices.

    Raises:
        UserError: if no run is given, or one is not finished, of another script, or has no
            checkpoint.
    """
    if not request.words:
        raise UserError("frequency_norms takes runs of modular_addition, as in: … default")
    script, above = request.script(SCRIPT), request.out_dir / SCRIPT
    folders = [run_folder(each, above) for each in request.words]
    drawing, axes = plots.panels(len(folders), request.typed)
    names = short_names(folders)
    for axis, folder, name in zip(axes, folders, names, strict=True):
        config, takes = read_config(folder), Takes.of(script.Options)
        if "fixed_embedding" not in config:
            raise UserError(f"frequency_norms takes finished runs of {SCRIPT}; {folder} is none")
        o = script.Options(**{k: takes[k](k, v) for k, v in config.items() if k in takes})
        network, state = script.initial_network(o), finished_checkpoint(folder)["state"]
        moments = {"at first": copied(network.state_dict())}
        restore(folder / "checkpoint.pt", state, {"network": network})
        moments["at last"] = network.state_dict()
        for style, (moment, state) in zip((":", "-"), moments.items(), strict=True):
            for colour, matrix in zip(
                plots.COLOURS, ("token_embedding", "unembedding"), strict=False
            ):
                norms = frequency_norms(state[matrix][: o.p])  # without the token "="
                label = f"{matrix.removeprefix('token_')}, {moment}"
                axis.plot(range(1, len(norms) + 1), norms, color=colour, ls=style, label=label)
        axis.set(
            xlabel="frequency",
            ylabel="norm of a frequency",
            title=textwrap.fill(name.replace(",", ", "), 42),
        )
        axis.set_ylim(bottom=0)
    drawing.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    save(request, SCRIPT, ["frequency_norms"], drawing)
