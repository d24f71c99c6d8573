"""Figures and tables across finished runs, one small file each; they train nothing.

Every file has a function `report(request)`, which writes what it makes into the folder of runs and
prints the path; `python report.py NAME` calls it. What a report needs of a script (its panels, say)
comes with the request, so that nothing here reads a script.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Request(NamedTuple):
    """What `report.py` was asked for."""

    out_dir: Path
    """The folder that holds the runs."""
    words: tuple[str, ...]
    """Names of runs, or whatever else the report takes."""
    data_dir: str
    """The folder of the images."""
    typed: str
    """The line that the user typed, for below a figure."""
    script: Callable[[str], Any]
    """Name of a script -> its module, for its `Options` and `PANELS`."""
    name: str | None = None
    """Of the picture, without its ending."""
