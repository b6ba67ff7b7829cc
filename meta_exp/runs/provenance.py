"""What made a result: versions of packages, and the commit of the code."""

import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def provenance() -> dict[str, Any]:
    """Return the versions that made a result, and the commit of the code where it is a git checkout."""
    packages = ("meta-exp", "torch", "pytorch-lightning", "hydra-core", "numpy")
    commit = None
    if git := shutil.which("git"):
        command = [git, "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    return {
        "version/python": platform.python_version(),
        **{f"version/{package}": version(package) for package in packages},
        "git_commit": commit,
    }
