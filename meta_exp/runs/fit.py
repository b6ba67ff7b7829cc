"""A run of what is given in Python: a network and a task family, trained without a command and without a folder.

All else becomes a config as the command line composes it: values have the same defaults and bounds, and are refused in
the same words. The training is that of a run; its checkpoints stand in a folder that is gone when it is over, and
``keep`` writes what is left into one that stays, in the format of a run's.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from meta_exp import cli
from meta_exp.config.checks import require, shown
from meta_exp.config.keys import within
from meta_exp.config.overrides import check_words, parse
from meta_exp.config.schema import TARGET
from meta_exp.files import replacing, write_json, write_whole
from meta_exp.installation import CONF
from meta_exp.runs import names
from meta_exp.runs.build import build, resolve, targets_of
from meta_exp.runs.provenance import provenance
from meta_exp.runs.restore import TUNED, Restored
from meta_exp.runs.saved import snapshot
from meta_exp.runs.train import about, learn
from meta_exp.runs.trust import MODULES
from meta_exp.tasks import fitness, given
from meta_exp.tasks.stream import TaskFamily

Part = str | Callable[..., Any]  # an option's name, a class, or functools.partial of one with values
GIVEN = ("model", "dataset", "logger", "hydra", "name", "run_dir", "run_name", "choices", "trust", "scores")
PLAIN = "maml"  # algorithm
LIKELIHOODS = {"classes": "categorical", "counts": "poisson", "numbers": "gaussian"}


def fit(
    model: nn.Module | Callable[..., nn.Module],
    family: TaskFamily,
    overrides: Sequence[str],
    parts: dict[str, Part | None],
    values: dict[str, Any],
) -> Restored:
    """Train ``model`` on ``family``.

    Args:
        model: a network, which stays as it is, or a class that takes ``input_shape`` and ``outputs``.
        family: the tasks.
        overrides: of the config, in Hydra's grammar.
        parts: of the groups algorithm, likelihood and curvature; None for what the others bring.
        values: of the config, by dotted key.

    Raises:
        ValueError: something given does not fit, in the words of the command line.
        FloatingPointError: the training diverged.
    """
    with _apart(), TemporaryDirectory(prefix="meta-exp-") as place, torch.random.fork_rng():
        cfg = _compose(model, family, overrides, parts, values, place)
        network = deepcopy(model) if isinstance(model, nn.Module) else None
        run = build(cfg, family, network)
        learnt = learn(run, Path(place), cfg.calibrate)
        require(learnt is not None, "trainer.devices", "1, in Python", cfg.trainer.devices, "train on the command line")
        assert learnt is not None
        metrics = about(cfg, run, learnt.best_step) | provenance()
        return Restored(Path(place), cfg, family, run.learner.eval(), metrics, learnt.calibration)


def keep(run: Restored, folder: Path) -> None:
    """Write ``run`` into a new ``folder``, its result last, so that the folder is a finished run's or none.

    Raises:
        ValueError: something is there already.
        OSError: it cannot be written.
    """
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    require(not taken, str(folder), "a new folder, or an empty one", "one that holds something", "choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    cfg = OmegaConf.merge(run.cfg, {"run_dir": str(folder.absolute()), "run_name": names.run_name(folder)})
    assert isinstance(cfg, DictConfig)
    write_whole(folder / "config.yaml", snapshot(cfg))
    whole = io.BytesIO()
    torch.save({"state_dict": {name: value.cpu() for name, value in run.learner.state_dict().items()}}, whole)
    with replacing(folder / "best.ckpt", "wb") as stream:
        stream.write(whole.getbuffer())
    if run.calibration:
        run.calibration.write(folder)
    if run.tuned:
        write_json(folder / TUNED, {"prior_precision": run.learner.prior_precision})
    write_json(folder / "metrics.json", run.metrics)


@contextmanager
def _apart() -> Iterator[None]:
    """Hide the config of a Hydra command that calls us: it is not the run's."""
    hydra = HydraConfig.instance()
    outer, hydra.cfg = hydra.cfg, None
    try:
        yield
    finally:
        hydra.cfg = outer


def _compose(
    model: nn.Module | Callable[..., nn.Module],
    family: TaskFamily,
    overrides: Sequence[str],
    parts: dict[str, Part | None],
    values: dict[str, Any],
    place: str,
) -> DictConfig:
    """Return the resolved config of the run."""
    network = isinstance(model, nn.Module) or callable(model)
    require(network, "model", "a network, or a class of one", shown(model))
    if not within(type(family).__module__, ["meta_exp"]):
        fitness.refuse_unfit(family)
    refused = [override.key_or_group for override in parse(overrides) if within(override.key_or_group, GIVEN)]
    remedy = "the network and the tasks are given as they are"
    require(not refused, "overrides", "keys of the training", ", ".join(refused), remedy)
    check_words(overrides, CONF)
    parts = {"likelihood": LIKELIHOODS.get(targets_of(family)), **{k: v for k, v in parts.items() if v is not None}}
    classes = {group: _class(group, part) for group, part in parts.items() if not isinstance(part, str)}
    options = {group: part for group, part in parts.items() if isinstance(part, str)}
    options |= {group: _option(kind) for group, (kind, _) in classes.items() if _option(kind)}
    if "algorithm" not in options:
        options["algorithm"] = PLAIN  # brings nothing that a class of one's own would not know
    words = [f"{group}={option}" for group, option in options.items()]
    check_words(words, CONF)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", ["~dataset", "logger=none", *words, *overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(cli.reason(error)) from error
    with open_dict(cfg):
        cfg.choices = {group: cfg.hydra.runtime.choices.get(group) for group in cfg.choices}
        del cfg["hydra"]
        cfg.choices.update(dataset=type(family).__name__, model=type(model).__name__)
        cfg.update(name="fitted", run_dir=place, dataset=given.describe(family))
        cfg.model = {TARGET: "meta_exp.models.Given"}
        if not isinstance(model, nn.Module):
            classes["model"] = _class("model", model)
        for group, (kind, settings) in classes.items():
            if group in options and _option(kind):
                cfg[group].update(settings)
            else:
                cfg[group] = {TARGET: _name(group, kind), **settings}
                cfg.choices[group] = kind.__name__
        modules = {kind.__module__ for kind, _ in classes.values()}
        cfg.trust = sorted(module for module in modules if not within(module, ["meta_exp"]))
        for key, value in values.items():
            OmegaConf.update(cfg, key, value)
    return resolve(cfg)


def _class(group: str, part: Any) -> tuple[type, dict[str, Any]]:
    """Return a class, or that of a partial, and its values; raises ValueError for what a config cannot name."""
    kind, settings = (part.func, part.keywords) if isinstance(part, partial) else (part, {})
    named = isinstance(kind, type) and "." not in kind.__qualname__ and not (isinstance(part, partial) and part.args)
    expected = "a class at the top of its module, or functools.partial of one with named values"
    expected = expected if group == "model" else f"the name of an option, {expected}"
    require(named, group, expected, shown(part))
    assert isinstance(kind, type)
    return kind, dict(settings)


def _option(kind: type) -> str:
    """Return the option that a class of ours has in conf/, which is its file's, or an empty string."""
    return kind.__module__.rpartition(".")[2] if within(kind.__module__, ["meta_exp"]) else ""


def _name(group: str, kind: type) -> str:
    """Return the name of a class as a config has it: of ours that of its room, where it is exported."""
    room = MODULES[group]
    return f"{room if within(kind.__module__, [room]) else kind.__module__}.{kind.__name__}"
