"""A composed config resolved, and then built: the task family with its stream, the learner and the trainer."""

import inspect
import logging
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from meta_exp import likelihoods
from meta_exp.config.checks import one_line, require
from meta_exp.config.keys import within
from meta_exp.config.schema import constructor, from_keys
from meta_exp.models import refuse_fused_norms, refuse_repeated_layers, refuse_unfit
from meta_exp.runs.names import run_name
from meta_exp.runs.trust import MODULES, refuse_unsafe, trusted_modules
from meta_exp.tasks import fitness
from meta_exp.tasks.measured import Measured
from meta_exp.tasks.stream import TaskFamily, draw_tasks
from meta_exp.training.checkpoints import AtomicCheckpoints, Best
from meta_exp.training.data import TaskStream
from meta_exp.training.learner import Learner
from meta_exp.training.learning_curve import LearningCurve
from meta_exp.training.loggers import Guarded, Recorder
from meta_exp.training.precision import set_precision
from meta_exp.training.progress import TrainingProgress

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # it sets INFO when imported
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # a compiler for CUDA is not needed
for message in (
    ".*treespec, LeafSpec.*",  # Lightning, torch.func.jvp and torch.compile ask PyTorch in ways that it has deprecated
    ".*torch.jit.script.*",
    ".*_prims_common.check.*",
):
    warnings.filterwarnings("ignore", message=message)
EVALUATION_STEPS = 10  # unless training takes more
PRECISIONS = ("highest", "high", "medium")


@dataclass
class Run:
    """What a config describes, built: the task family with its stream, the learner and the trainer."""

    family: TaskFamily
    stream: TaskStream
    learner: Learner
    trainer: Trainer
    best: Best
    recorder: Recorder
    progress: TrainingProgress


def resolve(cfg: DictConfig) -> DictConfig:
    """Return a copy of a composed config with all that follows from it in its place: name, eta, steps, references.

    It is what is built, saved and shown on dashboards. A data set of one's own is looked into, for what it decides.
    """
    cfg = deepcopy(cfg)
    cfg.run_name = run_name(Path(cfg.run_dir))
    trust = trusted_modules(cfg.get("trust"))
    refuse_unsafe(OmegaConf.to_container(cfg, resolve=True), trust)
    _take_own_classes(cfg, trust)
    if cfg.curvature and "eta" in cfg.algorithm and cfg.algorithm.eta is None:
        structure: Any = constructor(cfg.curvature, "curvature").func
        cfg.algorithm.eta = structure.default_eta
    if cfg.evaluation_steps is None:
        steps = cfg.algorithm.get("inner_steps")
        cfg.evaluation_steps = max(EVALUATION_STEPS, steps) if isinstance(steps, int) else EVALUATION_STEPS
    OmegaConf.resolve(cfg)
    family = constructor(cfg.dataset, "dataset")()
    if isinstance(family, Measured):
        cfg.dataset.update(family.measure())
    return cfg


def _take_own_classes(cfg: DictConfig, trust: Sequence[str]) -> None:
    """Let ``GROUP._target_=my_package.Class`` on the command line take the place of the group's whole option.

    The choice has its name then, in tables too, and what the option has set stays where the class has such a key.
    """
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    keys = {override.lstrip("+").partition("=")[0] for override in given}
    for group in [group for group in MODULES if f"{group}._target_" in keys and within(cfg[group]._target_, trust)]:
        known = inspect.signature(get_class(cfg[group]._target_)).parameters
        with open_dict(cfg):
            if group in cfg.choices:
                cfg.choices[group] = cfg[group]._target_.rpartition(".")[2]
            for key in [
                key for key in cfg[group] if not (key in known or key == "_target_" or f"{group}.{key}" in keys)
            ]:
                cfg[group].pop(key)


def build(cfg: DictConfig) -> Run:
    """Build everything that a resolved config names; raises ValueError where a setting is out of range."""
    for key in ("max_steps", "val_check_interval", "log_every_n_steps"):
        value = cfg.trainer[key]
        require(isinstance(value, int) and value >= 1, f"trainer.{key}", "an integer, at least 1", value)
    lr = cfg.optimizer.lr
    require(isinstance(lr, float | int) and lr > 0, "optimizer.lr", "a learning rate > 0", lr)
    precision = cfg.matmul_precision
    require(precision in PRECISIONS, "matmul_precision", f"one of {', '.join(PRECISIONS)}", precision)
    family = constructor(cfg.dataset, "dataset")()
    if not _is_ours(family):
        fitness.refuse_unfit(family)
    set_precision(precision, images=len(family.input_shape) == 3)
    numbers = ("seed", "validation_tasks", "test_tasks", "num_tasks", "conformal_tasks")
    stream = from_keys(TaskStream, cfg, *numbers)(family)
    torch.manual_seed(cfg.seed)  # of the weights; all else that is random has generators of its own
    learner = build_learner(cfg, family)
    _try_scores(learner, family)
    callbacks = {name: constructor(part, f"callbacks.{name}")() for name, part in cfg.callbacks.items()}
    interval = min(cfg.trainer.val_check_interval, cfg.trainer.max_steps)
    loggers = [Guarded(constructor(part, f"logger.{name}")(), name) for name, part in (cfg.logger or {}).items()]
    recorder = Recorder(loggers, family.meta_batch * cfg.trainer.accumulate_grad_batches)
    try:
        trainer = constructor(cfg.trainer, "trainer")(
            callbacks=[*callbacks.values(), LearningCurve(Path(cfg.run_dir) / "curves.csv")],
            logger=recorder,
            plugins=[AtomicCheckpoints()],
            val_check_interval=interval,
        )
    except MisconfigurationException as error:
        raise ValueError(f"trainer.accelerator={cfg.trainer.accelerator}: {error}") from error
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    remedy = "a sweep runs its jobs side by side, with hydra/launcher=joblib, submitit_slurm or ray"
    require(trainer.world_size == 1 or not in_sweep, "trainer.devices in a sweep", "1", cfg.trainer.devices, remedy)
    return Run(family, stream, learner, trainer, callbacks["best"], recorder, callbacks["progress"])


def build_learner(cfg: DictConfig, family: TaskFamily) -> Learner:
    """Build the model with its likelihood, curvature and algorithm."""
    likelihood = constructor(cfg.likelihood, "likelihood")()
    _check_fit(likelihood, family)
    outputs = likelihood.outputs_for(family.outputs)
    model = constructor(cfg.model, "model")(input_shape=family.input_shape, outputs=outputs)
    refuse_repeated_layers(model)
    if _is_ours(model):
        refuse_fused_norms(model, family.input_shape)
    else:
        refuse_unfit(model, family.input_shape, outputs)
    curvature = None
    if has_curvature(cfg):
        curvature = constructor(cfg.curvature, "curvature")(model=model, input_shape=family.input_shape)
    algorithm = constructor(cfg.algorithm, "algorithm")(model=model, likelihood=likelihood, curvature=curvature)
    keys = ("evaluation_steps", "predictives", "samples", "hyper_lr", "chunk_size", "compile", "checkpoint_steps")
    learner = from_keys(Learner, cfg, *keys)
    schedule = constructor(cfg.lr_schedule, "lr_schedule")() if cfg.get("lr_schedule") else None
    scores = {name: constructor(part, f"scores.{name}")() for name, part in (cfg.get("scores") or {}).items()}
    return learner(algorithm, constructor(cfg.optimizer, "optimizer"), schedule=schedule, scores=scores)


def _is_ours(part: object) -> bool:
    """Whether a part is of our own, which tests hold, and not the user's, which is tried before it trains."""
    return within(type(part).__module__, ["meta_exp"])


def _try_scores(learner: Learner, family: TaskFamily) -> None:
    """Score a task where there are scores of the user's own; raises ValueError where they cannot."""
    if not learner.scores:
        return
    try:
        episodes = draw_tasks(family, "validation", 0, 2)
        learner.evaluate(episodes, learner.evaluation_steps, learner.predictives)
    except (ValueError, OSError):
        raise
    except Exception as error:  # the user's own code, which may fail in any way
        names, got = ", ".join(learner.scores), f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"scores: expected {names} to score a task under vmap, got {got}") from error


def has_curvature(cfg: DictConfig) -> bool:
    """Whether a curvature is chosen; keys that an experiment sets for its own are no choice of one."""
    return cfg.choices.curvature not in (None, "none")


def _check_fit(likelihood: likelihoods.Likelihood, family: TaskFamily) -> None:
    """Raise ValueError where the family's targets are not those of the likelihood; counts are numbers too.

    A family of counts says so by ``targets = "counts"``.
    """
    given = getattr(family, "targets", "classes" if family.classes else "numbers")
    taken = {given} | ({"numbers"} if given == "counts" else set())
    known = [kind for kind in vars(likelihoods).values() if isinstance(kind, type) and hasattr(kind, "targets")]
    expected = ", ".join(sorted(_option(kind) for kind in known if kind.targets in taken))
    remedy = f"the data set's targets are {given}"
    key = f"likelihood with {type(family).__name__}"
    require(likelihood.targets in taken, key, expected, _option(type(likelihood)), remedy)


def _option(likelihood: type) -> str:
    """Return the name that a likelihood has in conf/, which is its file's."""
    return likelihood.__module__.rpartition(".")[2]
