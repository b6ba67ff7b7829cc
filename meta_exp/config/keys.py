"""Keys of a config, dotted, and which of them make a run what it is: known here and nowhere else.

A run is what its config says, but for where it was computed, watched and kept. Its seed is part of it, and of its
folder's name; in a comparison runs that differ in the seed alone are one configuration.
"""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

Keys = Mapping[str, Any]  # a config, flat: dotted key to value
COMPUTED = ("trainer.accelerator", "trainer.devices")
WATCHED = ("logger", "callbacks.last", "callbacks.progress")
KEPT = ("dataset.root", "dataset.download")
SERVED = ("calibrate", "conformal_tasks", "tune_prior_precision")  # how a trained run is served
SCORED = ("test_tasks", "samples", "predictives", "each_step")  # what is computed once it is trained
VALIDATED = ("evaluation_steps",)  # and what its validation goes by too, so that it may change when that is over
PLACED = ("run_dir", "run_name", "run_title")  # set by the folder
# of the folder, and the sweep's bears the experiment's name
NOT_IN_NAME = ("experiment", "trust", "run_title", *COMPUTED, *WATCHED, *KEPT)
MEASURED = tuple(f"dataset.{key}" for key in ("mean", "std", "x_mean", "x_std", "y_mean", "y_std"))  # by its data
MAY_CHANGE = (*NOT_IN_NAME, *SERVED, *SCORED, *PLACED)  # when a run goes on
NOT_COMPARED = (
    *("seed", "name", "format", "callbacks", "scores", "conformal_tasks", "each_step"),
    *(*COMPUTED, *WATCHED, *PLACED, *MEASURED),
)


def within(key: str, prefixes: Sequence[str]) -> bool:
    """Whether the dotted ``key`` is one of ``prefixes`` or below it."""
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def is_identity(key: str) -> bool:
    """Whether the dotted ``key`` tells configurations apart in a comparison."""
    return not within(key, NOT_COMPARED)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested config as dotted keys; lists are values."""
    if not isinstance(config, dict):
        return {prefix: config}
    return {k: v for key, part in config.items() for k, v in flatten(part, f"{prefix}.{key}".lstrip(".")).items()}


def meant(key: str, known: Collection[str]) -> str:
    """Return what somebody may have meant by a dotted ``key`` that is none of the ``known`` ones, as a remedy.

    That is the same name at another place, the nearest one beside it, or one of which it is a part; else all beside it.
    """
    above, dot, name = key.rpartition(".")
    below = [place.removeprefix(above + dot) for place in known if place.startswith(above + dot)]
    beside = list(dict.fromkeys(place.partition(".")[0] for place in below))
    same = [place for place in known if place.endswith(f".{name}")]
    close = [above + dot + other for other in get_close_matches(name, beside, 1)]
    longer = [place for place in known if name in place.rpartition(".")[2].split("_")]
    here = [place for place in longer if above and place.rpartition(".")[0] == above]
    if near := dict.fromkeys([*here, *same] or close or longer):
        return f"did you mean {' or '.join(near)}?"
    return f"there are {', '.join(beside)}" if beside else ""
