"""How classes, or tasks, of one's own are split: by the folders that they are in, by lists of names, or by a seed.

A split may be called as other people's data sets call it: ``val`` is validation. What is shuffled is cut into shares in
the order train, validation, test; a cut falls on the nearest whole number.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meta_exp.config.checks import require
from meta_exp.tasks.stream import SPLITS

NAMES = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
Shares = tuple[float, float, float]


def check_shares(shares: Sequence[float], seed: int) -> None:
    """Raise ValueError unless ``shares`` are three positive numbers whose sum is 1, and ``seed`` is no less than 0."""
    whole = len(shares) == len(SPLITS) and min(shares) > 0 and abs(sum(shares) - 1) < 1e-6
    require(whole, "dataset.shares", "three shares > 0 of train, validation and test, whose sum is 1", list(shares))
    require(seed >= 0, "dataset.split_seed", "an integer >= 0", seed)


def shuffled(count: int, shares: Sequence[float], seed: int) -> dict[str, NDArray[np.int64]]:
    """Split ``count`` classes or tasks by a seeded shuffle; the places of each split in ascending order."""
    order = np.random.default_rng(seed).permutation(count)
    cuts = np.rint(np.cumsum(shares)[:-1] * count).astype(int)
    return {split: np.sort(part) for split, part in zip(SPLITS, np.split(order, cuts), strict=True)}


def find_splits(folder: Path, suffixes: Sequence[str], holds: Callable[[Path], bool]) -> dict[str, Path]:
    """Return what bears the name of a split, with one of ``suffixes``, in ``folder``: all three, or nothing.

    Raises ValueError where there are some of them only, or two of one.
    """
    found: dict[str, Path] = {}
    for split, names in NAMES.items():
        places = [folder / f"{name}{suffix}" for name in names for suffix in suffixes]
        places = [place for place in places if holds(place)]
        require(len(places) <= 1, str(folder), f"one of {split}", " and ".join(place.name for place in places))
        if places:
            found[split] = places[0]
    missing = [split for split in SPLITS if split not in found]
    got = f"{', '.join(place.name for place in found.values())} alone"
    remedy = f"add {', '.join(missing)}, or call no part by the name of a split"
    require(len(missing) in (0, len(SPLITS)), str(folder), "train, validation (or val) and test", got, remedy)
    return found


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the sub-folders of ``folder`` that are its splits, and nothing where there are none.

    Raises ValueError where other folders stand beside them, which would be lost in silence.
    """
    found = find_splits(folder, [""], Path.is_dir)
    beside = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    others = [name for name in beside if name not in {place.name for place in found.values()}]
    remedy = "move it into one of them, or away"
    expected = "no folder beside train, validation and test"
    require(not (found and others), str(folder), expected, ", ".join(others[:5]), remedy)
    return found


def require_once(names: dict[str, str], name: str, split: str, what: str) -> None:
    """Note in ``names`` that ``name`` is in ``split``; raises ValueError for one that is in another split already."""
    known = names.setdefault(name, split)
    require(known == split, f"{what} {name}", "one split", f"{known} and {split}", "give each to one of them")
