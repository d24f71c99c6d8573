"""Downloads that leave nothing behind when they fail, and say why in a line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lab.bench.errors import UserError, reason

Found = TypeVar("Found")


def download(what: str, folder: Path, fetch: Callable[[], Found], otherwise: str) -> Found:
    """What `fetch` brings into a folder.

    Args:
        what: its name, for the error.
        folder: made where it is not there, and removed again where nothing came.
        fetch: makes the download.
        otherwise: what a user can do without it.

    Raises:
        UserError: if it fails, for whatever reason.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        return fetch()
    except Exception as error:  # of the network, the disk, the archive
        for path in made:
            with contextlib.suppress(OSError):  # something has come after all
                path.rmdir()
        # torchvision tells a file's name and address first, and urllib has brackets of its own.
        last = Exception(str(error).strip().rpartition("\n")[2].strip("<>"))
        why = reason(error if isinstance(error, OSError) and error.strerror else last)
        raise UserError(
            f"{what} could not be downloaded ({why.removeprefix('urlopen error ')}); {otherwise}"
        ) from None
