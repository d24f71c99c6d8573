"""What a checkpoint holds: read with an error that says what is wrong, and put back into parts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from lab.bench.errors import UserError, reason
from lab.bench.files import AFRESH

CONTENT = {"step": int, "seconds": float, "finished": bool, "rows": list, "state": dict}


def read_checkpoint(path: Path, steps: int) -> dict[str, Any]:
    """What `Run.save` has written, on the CPU.

    Args:
        path: of the file.
        steps: updates of the whole run.

    Raises:
        UserError: if it cannot be read, or is not the checkpoint of such a run.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from None
    except Exception as error:  # whatever a damaged file may lead to
        said = reason(error).partition(". ")[0]  # torch adds advice, with colours
        raise UserError(f"{path} is damaged ({said}); {AFRESH}") from None
    if wrong := _wrong(content, steps):
        raise UserError(f"{path} is no checkpoint of this run: {wrong}; {AFRESH}")
    return content


def finished_checkpoint(folder: Path) -> dict[str, Any]:
    """What the checkpoint of a run that has ended holds; raises UserError if it is not there."""
    content = read_checkpoint(folder / "checkpoint.pt", sys.maxsize)
    if not content["finished"]:
        raise UserError(f"{folder} is not finished; its own command continues it")
    return content


def _wrong(content: Any, steps: int) -> str | None:
    """What a checkpoint should not hold; None if nothing is wrong."""
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}"
    if wrong := [k for k, kind in CONTENT.items() if not isinstance(content.get(k), kind)]:
        return f"{', '.join(wrong)} missing or of another type"
    step, rows = content["step"], content["rows"]
    if not 0 <= step <= steps:
        return f"it is of step {step}, the run has {steps}"
    columns = rows[0].keys() if rows and isinstance(rows[0], dict) else {"step"}
    for row in rows:
        if not isinstance(row, dict) or row.keys() != columns or "step" not in columns:
            return "its measurements differ in their columns"
        if not all(isinstance(value, int | float) for value in row.values()) or row["step"] > step:
            return "its measurements are no numbers, or of later steps"
    return None


def restore(path: Path, saved: dict[str, Any], parts: dict[str, Any]) -> None:
    """Puts a checkpoint's state into modules, optimisers and whatever else an update changes.

    Args:
        path: of the file, for the error.
        saved: its states, by name.
        parts: the parts, by the same names.

    Raises:
        UserError: if a state is missing or does not fit.
    """
    missing = sorted(parts.keys() - saved.keys())
    if missing:
        raise UserError(f"{path} lacks the state of {', '.join(missing)}; {AFRESH}")
    for name, part in sorted(parts.items()):
        try:
            there, here = _shapes(saved[name]), _shapes(part.state_dict())
            if any(there.get(key) != shape for key, shape in here.items()):
                raise ValueError("other shapes")
            part.load_state_dict(saved[name])
        except UserError:
            raise
        except Exception as error:  # a part of any kind may say in its own way what does not fit
            raise UserError(
                f"{path} does not fit the {name} of this run ({reason(error)}); {AFRESH}"
            ) from None


def _shapes(state: dict[str, Any]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items() if torch.is_tensor(value)}


def copied(state: Any) -> Any:
    """Tensors as copies on the CPU, since training goes on with the tensors themselves."""
    if torch.is_tensor(state):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    return [copied(value) for value in state] if isinstance(state, list | tuple) else state
