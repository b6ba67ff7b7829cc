"""A run's config as it stands in its folder, ``config.yaml``: resolved, with the format of the folder in front.

It names classes by their modules. A config that an earlier version wrote is read with the names of today, so that its
run is restored, goes on and is compared as any other: whoever reads a saved config reads it here.
"""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from meta_exp.config.checks import one_line, require

FORMAT = 1  # of a run's folder: raise it with any change after which older folders cannot be restored
RENAMED = {  # what earlier versions named, and what it is called today
    "meta_exp.checkpoints.Best": "meta_exp.training.checkpoints.Best",
    "meta_exp.checkpoints.Last": "meta_exp.training.checkpoints.Last",
    "meta_exp.dashboard.TensorBoard": "meta_exp.training.loggers.TensorBoard",
    "meta_exp.dashboard.WandB": "meta_exp.training.loggers.WandB",
    "meta_exp.likelihood.Categorical": "meta_exp.likelihoods.Categorical",
    "meta_exp.likelihood.Gaussian": "meta_exp.likelihoods.Gaussian",
    "meta_exp.progress.TrainingProgress": "meta_exp.training.progress.TrainingProgress",
    "pytorch_lightning.callbacks.ModelCheckpoint": "meta_exp.training.checkpoints.Best",
    "pytorch_lightning.loggers.WandbLogger": "meta_exp.training.loggers.WandB",
}


def snapshot(cfg: DictConfig) -> str:
    """Return the text of ``config.yaml`` for a resolved config."""
    return f"format: {FORMAT}\n" + OmegaConf.to_yaml(cfg, resolve=True)


def read_config(file: Path) -> DictConfig:
    """Return the config saved in ``file``, with the names of today; it is data, and nothing in it is looked up.

    Raises:
        ValueError: the file is not a config.
        OSError: the file cannot be read.
    """
    try:
        # OmegaConf's loader is a safe one, which constructs plain values only; aliases could grow without bound
        aliases = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(file.read_text(), yaml.SafeLoader))
        cfg = OmegaConf.load(file)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ValueError(f"{file}: expected a run's config, got {one_line(error)}") from error
    require(isinstance(cfg, DictConfig) and not aliases, str(file), "a run's config", "aliases or another structure")
    return OmegaConf.create(_renamed(OmegaConf.to_container(cfg, resolve=False)))


def _renamed(node: Any) -> Any:
    """Return ``node`` with today's name for each class that it names."""
    if isinstance(node, list):
        return [_renamed(part) for part in node]
    if not isinstance(node, dict):
        return node
    target = {"_target_": _today(node["_target_"])} if "_target_" in node else {}
    return {key: _renamed(part) for key, part in node.items()} | target


def _today(name: Any) -> Any:
    return RENAMED.get(name, name) if isinstance(name, str) else name
