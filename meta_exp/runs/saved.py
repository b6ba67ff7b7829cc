"""A run's config as it stands in its folder, ``config.yaml``: resolved, with the format of the folder in front.

It names classes by their modules. A config that an earlier version wrote is read with the names and keys of today, so
that its run is restored, goes on and is compared as any other: whoever reads a saved config reads it here.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from meta_exp.config.checks import one_line, require
from meta_exp.files import read_bounded

FORMAT = 1  # of a run's folder: raise it with any change after which older folders cannot be restored
LARGEST, DEEPEST = 2**20, 50  # bytes and levels of a config
RENAMED = {  # what earlier versions named, and what it is called today
    "meta_exp.checkpoints.Best": "meta_exp.training.checkpoints.Best",
    "meta_exp.checkpoints.Last": "meta_exp.training.checkpoints.Last",
    "meta_exp.dashboard.TensorBoard": "meta_exp.training.loggers.TensorBoard",
    "meta_exp.dashboard.WandB": "meta_exp.training.loggers.WandB",
    "meta_exp.likelihood.Categorical": "meta_exp.likelihoods.Categorical",
    "meta_exp.likelihood.Gaussian": "meta_exp.likelihoods.Gaussian",
    "meta_exp.progress.TrainingProgress": "meta_exp.training.progress.TrainingProgress",
    "pytorch_lightning.Trainer": "meta_exp.training.trainer.Trainer",
    "pytorch_lightning.callbacks.ModelCheckpoint": "meta_exp.training.checkpoints.Best",
    "pytorch_lightning.loggers.WandbLogger": "meta_exp.training.loggers.WandB",
}
DROPPED = (  # keys that are none any more: the same for every run, or set by its folder
    "trainer.check_val_every_n_epoch",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.inference_mode",
    "trainer.num_sanity_val_steps",
    "callbacks.best.dirpath",
    "callbacks.last.dirpath",
)
ADDED: dict[str, dict[str, Any]] = {  # keys that earlier versions did not have, by class, and what they did
    "meta_exp.algorithms.LLAMA": {"inner_loop": "gradient", "mode": False, "stay": []},
    "meta_exp.algorithms.LLAMAPredictive": {"stay": []},
    "meta_exp.algorithms.MAML": {"inner_loop": "gradient", "mode": False, "stay": []},
    "meta_exp.algorithms.MAMLPlusPlus": {"stay": []},
    "meta_exp.algorithms.MetaSGD": {"stay": []},
    "meta_exp.models.Conv4": {"activation": "relu"},
    "meta_exp.models.MLP": {"activation": "relu"},
}


def snapshot(cfg: DictConfig) -> str:
    """Return the text of ``config.yaml`` for a resolved config; whom its user trusted is not its to say."""
    kept = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("trust", "format")])
    return f"format: {FORMAT}\n" + OmegaConf.to_yaml(kept, resolve=True)


def read_config(file: Path) -> DictConfig:
    """Return the config saved in ``file``, with the names of today; it is data, and nothing in it is looked up.

    Raises:
        ValueError: the file is not a config.
        OSError: the file cannot be read.
    """
    cfg = _load(file, "a run's config")
    require(isinstance(cfg, DictConfig), str(file), "a run's config", "another structure")
    today = _renamed(OmegaConf.to_container(cfg, resolve=False))
    for key in DROPPED:
        _drop(today, key.split("."))
    return OmegaConf.create(today)


def read_overrides(folder: Path) -> list[str]:
    """Return the overrides that a run keeps of its command, none where it has no list of them.

    Raises:
        ValueError: their file is no plain YAML.
        OSError: the file cannot be read.
    """
    files = [folder / "overrides.yaml", folder / ".hydra" / "overrides.yaml"]  # the latter of a run that Hydra kept
    file = next((file for file in files if file.is_file()), None)
    found = _load(file, "the overrides of a run") if file else None
    words: Any = OmegaConf.to_container(found) if isinstance(found, ListConfig) else []
    return list(map(str, words))


def read_plain(file: Path, expected: str) -> dict[str, Any]:
    """Return the mapping of a YAML file that may come from a stranger, nothing in it looked up; see ``_load``."""
    found = _load(file, expected)
    require(isinstance(found, DictConfig), str(file), expected, "another structure")
    return dict(OmegaConf.to_container(found, resolve=False))  # type: ignore[arg-type]


def _load(file: Path, expected: str) -> DictConfig | ListConfig:
    """Load a YAML file that may come from a stranger, as plain values; raises ValueError for any other.

    OmegaConf's loader constructs nothing else. Aliases, which could grow without bound, are refused, and so are files
    larger or deeper than a config is.
    """
    try:
        data = read_bounded(file, expected, LARGEST)
        depth = deepest = 0
        for event in yaml.parse(data, yaml.SafeLoader):
            require(not isinstance(event, yaml.AliasEvent), str(file), expected, "aliases")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            deepest = max(deepest, depth)
            require(deepest <= DEEPEST, str(file), expected, f"more than {DEEPEST} levels")
        return OmegaConf.load(io.BytesIO(data))
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException, RecursionError) as error:
        raise ValueError(f"{file}: expected {expected}, got {one_line(error)}") from error


def _renamed(node: Any) -> Any:
    """Return ``node`` with today's name for each class that it names, and with the keys that it has today."""
    if isinstance(node, list):
        return [_renamed(part) for part in node]
    if not isinstance(node, dict):
        return node
    target = {"_target_": _today(node["_target_"])} if "_target_" in node else {}
    added = ADDED.get(target["_target_"], {}) if isinstance(target.get("_target_"), str) else {}
    return added | {key: _renamed(part) for key, part in node.items()} | target


def _drop(node: Any, path: Sequence[str]) -> None:
    for name in path[:-1]:
        node = node.get(name) if isinstance(node, dict) else None
    if isinstance(node, dict):
        node.pop(path[-1], None)


def _today(name: Any) -> Any:
    return RENAMED.get(name, name) if isinstance(name, str) else name
