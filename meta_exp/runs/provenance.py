"""What made a result: versions of packages, and the commit of the code.

A run that was interrupted may go on under others. ``made_by.jsonl`` in its folder has a line for each part that was
made by the same: the step after which it begins, and what made it.
"""

import json
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from meta_exp.files import read_bounded, write_whole

MADE_BY = "made_by.jsonl"


def note_part(folder: Path, step: int) -> list[str]:
    """Note that the run in ``folder`` goes on after ``step``; return what has changed since, ``key=old, now new``."""
    file = folder / MADE_BY
    parts = [part for part in _read_parts(file) if step and part.get("step", 0) < step]
    new = provenance()
    old = parts[-1] if parts else {}
    changed = [f"{key}={old[key]}, now {value}" for key, value in new.items() if key in old and old[key] != value]
    if changed or not parts:
        parts.append({"step": step, **new})
    write_whole(file, "".join(json.dumps(part) + "\n" for part in parts))
    return changed


def _read_parts(file: Path) -> list[dict[str, Any]]:
    """Return the parts that ``file`` has, none where it is missing or damaged."""
    try:
        parts = [json.loads(line) for line in read_bounded(file, "what made the run").splitlines()]
    except (OSError, ValueError, RecursionError):
        return []
    return [part for part in parts if isinstance(part, dict) and isinstance(part.get("step"), int)]


def provenance() -> dict[str, Any]:
    """Return the versions that made a result, and the commit of the code where it is a git checkout."""
    packages = ("meta-exp", "torch", "pytorch-lightning", "hydra-core", "numpy")
    commit = None
    if git := shutil.which("git"):
        # also where the checkout is another user's, as on a shared machine: its code runs here in any case
        command = [git, "-c", "safe.directory=*", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    return {
        "version/python": platform.python_version(),
        **{f"version/{package}": version(package) for package in packages},
        "git_commit": commit,
    }
