"""Fourier norms of embedding and unembedding of modular_addition's runs, at first and at last.

    python report.py frequency_norms default jr=0.001

Runs are given by their folder or by name, and need their checkpoints.
"""

from __future__ import annotations

import pickle
import textwrap

import torch

from lab.bench import plots
from lab.bench.errors import UserError
from lab.bench.files import read_config, run_folder, short_names, write_figure
from lab.measures.fourier import frequency_norms
from lab.reports import Request

SCRIPT = "modular_addition"


def report(request: Request) -> None:
    """Draws a panel for each run: the norm of each frequency in both matrices.

    Raises:
        UserError: if no run is given, or one has no checkpoint.
    """
    if not request.words:
        raise UserError("frequency_norms takes runs of modular_addition, as in: … default")
    script, above = request.script(SCRIPT), request.out_dir / SCRIPT
    folders = [run_folder(each, above) for each in request.words]
    drawing, axes = plots.panels(len(folders), request.typed)
    names = short_names(folders)
    for axis, folder, name in zip(
        [axes] if len(folders) == 1 else axes, folders, names, strict=True
    ):
        fields = script.Options.__dataclass_fields__
        o = script.Options(**{k: v for k, v in read_config(folder).items() if k in fields})
        try:
            saved = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
            moments = {"at first": script.initial_network(o).state_dict()}
            moments["at last"] = saved["state"]["network"]
        except OSError as error:
            raise UserError(f"{folder}/checkpoint.pt cannot be read: {error.strerror}") from None
        except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError):
            raise UserError(f"{folder}/checkpoint.pt is damaged") from None
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
        axis.set_ylim(0, 1.3 * axis.dataLim.y1)  # room for the legend
        axis.legend(loc="upper left", ncols=2)
    path = above / "frequency_norms.png"
    write_figure(path, drawing)
    print(path)
