"""What made a run: command, commit, device, package versions, time."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "matplotlib", "scikit-learn", "pyautoattack")


def provenance(device: torch.device) -> dict[str, Any]:
    """As a run's config.yaml keeps it: words and versions that YAML can hold."""
    if device.type == "cuda":
        machine = f"{device}, {torch.cuda.get_device_name(device)}"
    else:
        machine = f"{device}, {platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "command": typed_line(),
        "commit": _commit(),
        "device": machine,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "started": now(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def typed_line() -> str:
    """What the user typed."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def _commit() -> str:
    """The commit of the code, with `+changes` if a module differs from that or is new."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # A copy of the code inside somebody else's repository has no commit of its own.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return "unknown"
        changed = git("status", "--porcelain", "--untracked-files=all", "--", "*.py")
        return git("rev-parse", "HEAD") + "+changes" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """What may change a run's numbers: code, device and versions that differ, as (old, new)."""
    old, new = ({**found, **found.get("packages", {})} for found in (before, after))
    same = ("command", "packages", "started", "matplotlib")  # which only draws
    return {k: (old[k], v) for k, v in new.items() if k not in same and old.get(k, v) != v}
