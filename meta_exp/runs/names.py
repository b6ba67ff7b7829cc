"""Names of runs: a folder for each set of overrides, and the id by which dashboards know the folder.

A job of a sweep stands in a folder named for its overrides, ``key-value`` joined by ``__`` in order of their keys. What
would not be legal, unambiguous or short there is cleaned, and a hash of the overrides as they were tells it apart.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from meta_exp.config.keys import NOT_IN_NAME, PLACED, within
from meta_exp.installation import typed

LONGEST_FOLDER = 200  # bytes; file systems take 255
LONGEST_ID = 120  # W&B takes 128
HASH = 10  # hexadecimal digits
SPLIT = re.compile(r"(.+?)_(\d{4}-\d\d-\d\d.*)|(.+?_sweep)_(.+)|([^_]+)_(.+)|([^_]+)")  # of a run's name into its parts
PLAIN_KEY = re.compile(r"[A-Za-z0-9]+([._][A-Za-z0-9]+)*")
PLAIN_VALUE = re.compile(r"[A-Za-z0-9.]+(_[A-Za-z0-9.]+)*|-?[0-9.]+(e[+-]?[0-9]+)?")


def override_folder(overrides: Sequence[str]) -> str:
    """Return the folder's name for a job's ``overrides``, in Hydra's grammar, whatever their order."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    pairs = sorted((o.get_key_element(), "" if o.is_delete() else o.get_value_element_as_str()) for o in parsed)
    pairs = [(key, value) for key, value in pairs if not within(key.lstrip("+~"), NOT_IN_NAME)]
    if not pairs:
        return "default"
    name = "__".join(f"{key}-{value}" for key, value in pairs)
    plain = all(PLAIN_KEY.fullmatch(key) and PLAIN_VALUE.fullmatch(value) for key, value in pairs)
    return _legal(name, plain, LONGEST_FOLDER, repr(pairs))


def run_name(folder: Path) -> str:
    """Return a name that is the folder's path below outputs/, without separators; dashboards know the run by it.

    A folder elsewhere is told from others of its name by a hash of its path, and so is one below outputs/ whose name
    has another reading: a_b is outputs/a/b, and outputs/a_b has a hash.
    """
    parts = folder.absolute().parts
    inside = "outputs" in parts[:-1]
    below = parts[parts.index("outputs") + 1 :] if inside else parts[-1:]
    name = "_".join(below)
    split = SPLIT.fullmatch(name)
    read = tuple(part for part in split.groups() if part is not None) if split else ()
    plain = inside and read == below and re.fullmatch(r"[\w.-]+", name, re.ASCII) is not None
    return _legal(name, plain, LONGEST_ID, "/".join(below if inside else parts))


def varying_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys of a sweep's ``overrides`` that take several values, in their order; a later override wins."""
    parsed = {o.get_key_element().lstrip("+"): o for o in OverridesParser.create().parse_overrides(list(overrides))}
    return [key for key, override in parsed.items() if override.is_sweep_override()]


def title(overrides: Sequence[str], keys: Sequence[str] | None = None, algorithm: str = "") -> str:
    """Return a run's name for people: what its ``overrides`` of ``keys``, or else of all, say; ``maml, seed 0``.

    ``algorithm`` stands in where they do not choose one.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = {o.get_key_element().lstrip("+~"): "" if o.is_delete() else o.get_value_element_as_str() for o in parsed}
    values = {key: value for key, value in values.items() if not within(key, (*NOT_IN_NAME, *PLACED, "name"))}
    values = {"algorithm": algorithm, **values}
    keys = list(values) if keys is None else keys
    named = [(key, values[key]) for key in keys if values.get(key)]
    return ", ".join(value if key == "algorithm" else f"{short(key)} {value}" for key, value in named)


def short(key: str) -> str:
    """Return a dotted key as people call it."""
    return {"curvature.prior_precision": "tau"}.get(key, key.rpartition(".")[2])


def _legal(name: str, plain: bool, longest: int, identity: str) -> str:
    """Return ``name`` if it is plain and short, else cleaned and cut, with a hash of ``identity``."""
    if plain and len(name) <= longest:
        return name
    digest = hashlib.sha256(identity.encode()).hexdigest()[:HASH]
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[: longest - HASH - 1].strip("-.")
    return f"{clean}-{digest}" if clean else digest


# the two resolvers: Hydra names the folder of a job, and shows its help, before it calls anything of ours
OmegaConf.register_new_resolver("override_folder", override_folder, replace=True)
OmegaConf.register_new_resolver("typed", typed, replace=True)
