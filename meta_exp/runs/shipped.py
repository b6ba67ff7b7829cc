"""Trained runs that come with the package: ``meta-exp/NAME`` stands for the folder of one, wherever a run is read.

They lie in ``meta_exp/trained/``, each with what ``meta_exp.load`` needs and a card, README.md, and are never written
to. ``benchmarks/ship.py`` makes them of finished runs.
"""

from pathlib import Path

from meta_exp.config.checks import require
from meta_exp.installation import PACKAGE

SHIPPED = PACKAGE / "trained"
PREFIX = "meta-exp"


def shipped_names() -> list[str]:
    """Return how the shipped runs are called, meta-exp/NAME."""
    return sorted(f"{PREFIX}/{file.parent.name}" for file in SHIPPED.glob("*/config.yaml"))


def place_of(folder: str | Path) -> Path:
    """Return the folder of the shipped run that ``folder`` names, or else ``folder``; one that is there comes first.

    Raises:
        ValueError: there is no shipped run of that name.
    """
    path = Path(folder)
    if path.parts[:1] != (PREFIX,) or len(path.parts) != 2 or path.exists():
        return path
    require(path.as_posix() in shipped_names(), "RUN", f"one of {', '.join(shipped_names())}, or a folder", path)
    return SHIPPED / path.name


def is_shipped(folder: Path) -> bool:
    """Whether ``folder`` is, or lies in, the package's own."""
    return folder.resolve().is_relative_to(SHIPPED.resolve())
