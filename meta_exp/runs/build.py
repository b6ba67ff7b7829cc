"""A composed config resolved, and then built: the task family with its stream, the learner and the trainer."""

import inspect
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger
from torch import nn

from meta_exp import likelihoods
from meta_exp.config.checks import one_line, require, require_at_most, shown
from meta_exp.config.keys import flatten, within
from meta_exp.config.schema import TARGET, constructor, from_keys, take
from meta_exp.models import refuse_fused_norms, refuse_repeated_layers, refuse_unfit
from meta_exp.runs.names import LONGEST_ID, run_name, title
from meta_exp.runs.trust import MODULES, refuse_unsafe, trusted_modules
from meta_exp.tasks import fitness
from meta_exp.tasks.measured import Measured
from meta_exp.tasks.stream import TaskFamily, draw_tasks
from meta_exp.terminal import Screen, plain
from meta_exp.training.checkpoints import AtomicCheckpoints, Best, Last
from meta_exp.training.data import TaskStream
from meta_exp.training.learner import STEPS, Learner
from meta_exp.training.learning_curve import LearningCurve
from meta_exp.training.loggers import Guarded, Recorder
from meta_exp.training.precision import set_precision
from meta_exp.training.progress import TrainingProgress
from meta_exp.training.trainer import Trainer

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # it sets INFO when imported
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # a compiler for CUDA is not needed
for message in (
    ".*treespec, LeafSpec.*",  # Lightning, torch.func.jvp and torch.compile ask PyTorch in ways that it has deprecated
    ".*torch.jit.script.*",
    ".*_prims_common.check.*",
):
    warnings.filterwarnings("ignore", message=message)
METHOD: dict[str, tuple[str, ...]] = {  # the groups that a finished run is built from again, and what each is given
    "dataset": (),
    "model": ("input_shape", "outputs"),
    "likelihood": (),
    "curvature": ("model", "input_shape"),
    "algorithm": ("model", "likelihood", "curvature"),
    "optimizer": ("params",),
    "lr_schedule": (),
}
TRAINING: dict[str, tuple[type, tuple[str, ...]]] = {  # and those that its training needed, with their classes
    "trainer": (Trainer, ("callbacks", "logger", "plugins")),
    "callbacks.best": (Best, ("dirpath",)),
    "callbacks.last": (Last, ("dirpath",)),
    "callbacks.progress": (TrainingProgress, ()),
}
OTHERS: dict[str, type] = {"callbacks": Callback, "logger": Logger, "scores": object}  # of any names
EVALUATION_STEPS = 10  # unless training takes more
PRECISIONS = ("highest", "high", "medium")
LEARNER = (
    *("evaluation_steps", "predictives", "each_step", "samples", "hyper_lr"),
    *("chunk_size", "compile", "checkpoint_steps"),
)
STREAM = ("seed", "validation_tasks", "test_tasks", "num_tasks", "conformal_tasks")


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
    """Return a copy of a composed config with all that follows from it in its place: name, eta, tau, steps, references.

    It is what is built, saved and shown on dashboards. Its values are those of the constructors' types. A data set of
    one's own is looked into, for what it decides.

    Raises:
        ValueError: a key is unknown or missing, or a value of the wrong type; or it is not the command's to choose.
    """
    cfg = deepcopy(cfg)
    _refuse_dangling(cfg)
    for group in ("dataset", "model", "likelihood", "algorithm", "optimizer", "trainer", "callbacks"):
        chosen = OmegaConf.is_dict(cfg.get(group))
        require(chosen, group, "the name of an option", cfg.get(group), f"choose one by {group}=NAME")
    _own_scores(cfg)
    _refuse_chosen(cfg)
    cfg.run_name = run_name(Path(cfg.run_dir))
    if cfg.get("run_title") is None:
        cfg.run_title = _title(cfg)
    require(not OmegaConf.is_config(cfg.run_title), "run_title", "a text, or null", cfg.run_title)
    trust = trusted_modules(cfg.get("trust"))
    refuse_unsafe(OmegaConf.to_container(cfg, resolve=True), trust)
    _take_own_classes(cfg, trust)
    OmegaConf.resolve(cfg)
    imply_prior_precision(cfg)
    take_types(cfg)
    family = constructor(cfg.dataset, "dataset")()
    if isinstance(family, Measured):
        cfg.dataset.update(family.measure())
    for key in _training_parts(cfg):
        take(OmegaConf.select(cfg, key), _part(cfg, key).keywords)
    if has_curvature(cfg) and "eta" in cfg.algorithm and cfg.algorithm.eta is None:
        structure: Any = _part(cfg, "curvature").func
        cfg.algorithm.eta = structure.default_eta
    return cfg


def _title(cfg: DictConfig) -> str | None:
    """Return what tells the run from others: in a sweep what differs there, else the overrides; None without a command.

    W&B takes no more than it can show.
    """
    if Screen.run:
        return Screen.run[:LONGEST_ID]
    if not HydraConfig.initialized():
        return None
    return plain(title(HydraConfig.get().overrides.task, algorithm=str(cfg.choices.algorithm)))[:LONGEST_ID]


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


def take_types(cfg: DictConfig) -> None:
    """Convert the values that a learner and its tasks are built from to the constructors' types, where they stand."""
    chosen = {"curvature": has_curvature(cfg), "lr_schedule": bool(cfg.get("lr_schedule"))}
    for group in METHOD:
        if chosen.get(group, True):
            take(cfg[group], _part(cfg, group).keywords)
    with open_dict(cfg):
        usual = cfg.pop("default_evaluation_steps", EVALUATION_STEPS)
    if "evaluation_steps" in cfg and cfg.evaluation_steps is None:
        whole = isinstance(usual, int) and not isinstance(usual, bool)
        require(whole and usual >= 1, "default_evaluation_steps", "an integer >= 1", usual)
        require_at_most(STEPS, "default_evaluation_steps", usual)
        cfg.evaluation_steps = max(usual, cfg.algorithm.get("inner_steps", 1))
    for target, keys in ((TaskStream, STREAM), (Learner, LEARNER), (_rest, ("name", "calibrate", "matmul_precision"))):
        take(cfg, from_keys(target, cfg, *keys).keywords)


def imply_prior_precision(cfg: DictConfig) -> None:
    """Put a number in the place of a tau that is null: a fixed one of regression is the structure's default.

    For classes, and where tau is learned, it is what the gradient steps of training imply (docs/theory.md, section 5):
    K steps of alpha on the mean loss end near the mode under a prior of the precision (-log p by loss) / (K alpha), to
    leading order. Without gradient steps there is none to go by, and tau is 1. sigma is taken as it starts; in training
    it falls, which is why a fixed tau does not go by it.

    Raises:
        ValueError: the size of a support set is not known by ``shots`` and ``ways``.
    """
    if not has_curvature(cfg) or cfg.curvature.get("prior_precision", 1.0) is not None:
        return
    cfg.curvature.prior_precision = 1.0
    likelihood = _part(cfg, "likelihood")()
    if likelihood.targets != "classes" and not cfg.curvature.get("learned"):
        structure: Any = _part(cfg, "curvature").func
        cfg.curvature.prior_precision = structure.default_prior_precision
        return
    algorithm = _part(cfg, "algorithm").keywords
    descends = algorithm.get("inner_loop", "gradient") == "gradient"
    steps, lr = algorithm.get("inner_steps", 1) if descends else 0, algorithm.get("inner_lr")
    if steps and lr:
        key, remedy = "curvature.prior_precision=null", "give a number"
        require("shots" in cfg.dataset, key, "a data set with a number of shots", "none", remedy)
        given = _part(cfg, "dataset")
        points = given.keywords["shots"] * given.keywords.get("ways", 1)
        scale = likelihood.nll_per_loss(points, given().outputs)
        cfg.curvature.prior_precision = float(scale / (steps * lr))


def build(cfg: DictConfig, family: TaskFamily | None = None, model: nn.Module | None = None) -> Run:
    """Build everything that a resolved config names; raises ValueError where a setting is out of range.

    A task family and a network that are given take the place of those that it names.
    """
    from_keys(_rest, cfg, "name", "calibrate", "matmul_precision")()
    family = _part(cfg, "dataset")() if family is None else family
    if not _is_ours(family):
        fitness.refuse_unfit(family)
    set_precision(cfg.matmul_precision, images=len(family.input_shape) == 3)
    stream = from_keys(TaskStream, cfg, *STREAM)(family)
    torch.manual_seed(cfg.seed)  # of the weights; all else that is random has generators of its own
    learner = build_learner(cfg, family, model)
    _try_scores(learner, family)
    _try_optimizer(_part(cfg, "optimizer"))
    folder = Path(cfg.run_dir)
    callbacks: dict[str, Any] = {}
    for name in cfg.callbacks:
        given = {"dirpath": str(folder)} if name in ("best", "last") else {}
        callbacks[name] = _part(cfg, f"callbacks.{name}")(**given)
    loggers = [Guarded(_part(cfg, f"logger.{name}")(), name) for name in cfg.get("logger") or {}]
    recorder = Recorder(loggers, family.meta_batch * cfg.trainer.accumulate_grad_batches)
    trainer = _part(cfg, "trainer")(
        callbacks=[*callbacks.values(), LearningCurve(folder / "curves.csv")],
        logger=recorder,
        plugins=[AtomicCheckpoints()],
    )
    ranks, tasks = trainer.world_size, family.meta_batch
    require(ranks <= tasks, "trainer.devices", f"at most dataset.meta_batch = {tasks} processes", ranks)
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    remedy = "a sweep runs its jobs side by side, with hydra/launcher=joblib, submitit_slurm or ray"
    require(ranks == 1 or not in_sweep, "trainer.devices in a sweep", "1", cfg.trainer.devices, remedy)
    return Run(family, stream, learner, trainer, callbacks["best"], recorder, callbacks["progress"])


def build_learner(cfg: DictConfig, family: TaskFamily, model: nn.Module | None = None) -> Learner:
    """Build the model, unless it is given, with its likelihood, curvature and algorithm."""
    likelihood = _part(cfg, "likelihood")()
    _check_fit(likelihood, family)
    outputs = likelihood.outputs_for(family.outputs)
    if model is None:
        model = _part(cfg, "model")(input_shape=family.input_shape, outputs=outputs)
    refuse_repeated_layers(model)
    if _is_ours(model):
        refuse_fused_norms(model, family.input_shape)
    else:
        refuse_unfit(model, family.input_shape, outputs)
    curvature = None
    if has_curvature(cfg):
        curvature = _part(cfg, "curvature")(model=model, input_shape=family.input_shape)
    algorithm = _part(cfg, "algorithm")(model=model, likelihood=likelihood, curvature=curvature)
    schedule = _part(cfg, "lr_schedule")() if cfg.get("lr_schedule") else None
    scores = {name: _part(cfg, f"scores.{name}")() for name in _own_scores(cfg)}
    learner = from_keys(Learner, cfg, *LEARNER)
    return learner(algorithm, _part(cfg, "optimizer"), schedule=schedule, scores=scores)


def _part(cfg: DictConfig, key: str) -> Any:
    """Return the constructor that stands at the dotted ``key``."""
    group, _, name = key.partition(".")
    kind, given = TRAINING.get(key) or (OTHERS.get(group, object), METHOD.get(group, ()))
    found = cfg.get(group)
    return constructor(found.get(name) if name and OmegaConf.is_dict(found) else found, key, kind, given)


def _training_parts(cfg: DictConfig) -> list[str]:
    """Return the dotted keys of the parts that only a training needs."""
    own = [
        f"{group}.{name}"
        for group in ("callbacks", "logger")
        for name in (cfg.get(group) if OmegaConf.is_dict(cfg.get(group)) else [])
    ]
    return list(dict.fromkeys([*TRAINING, *own]))


def _rest(name: str, calibrate: bool | None = None, matmul_precision: str = "highest") -> None:
    """Refuse values out of range of the keys that no constructor takes."""
    parts = Path(name).parts
    inside = bool(name.strip()) and ".." not in parts and not Path(name).is_absolute() and name.isprintable()
    require(inside, "name", "a name for folders below outputs/", shown(name))
    require(matmul_precision in PRECISIONS, "matmul_precision", f"one of {', '.join(PRECISIONS)}", matmul_precision)


def _own_scores(cfg: DictConfig) -> Mapping[Any, Any]:
    """Return what the user's own scores are made by; an older run's config has none."""
    own = cfg.get("scores", {})
    require(isinstance(own, Mapping), "scores", "scores by name", repr(own), "+scores.NAME._target_=my_package.Class")
    return own


def _refuse_dangling(cfg: DictConfig) -> None:
    """Raise ValueError at a reference to what is not there, by the key that holds it."""
    for key, value in flatten(OmegaConf.to_container(cfg, resolve=False)).items():
        if "${" in str(value):
            try:
                found = OmegaConf.select(cfg, key)
                _ = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
            except OmegaConfBaseException as error:
                said = str(error).partition("\n")[0]
                raise ValueError(f"{key}: expected a value, got {shown(value)}: {said}") from error


def _refuse_chosen(cfg: DictConfig) -> None:
    """Raise ValueError where the command sets what follows from others of its words: the folder, its name, choices."""
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    if not OmegaConf.is_missing(hydra.runtime, "output_dir"):
        folder = hydra.runtime.output_dir
        remedy = "choose it by hydra.run.dir"
        require(cfg.run_dir == folder, "run_dir", f"the folder that Hydra made, {folder}", cfg.run_dir, remedy)
    own = cfg.run_name in (None, run_name(Path(cfg.run_dir)))
    require(own, "run_name", "null, for the name of the folder", cfg.run_name, "choose the folder by hydra.run.dir")
    require(OmegaConf.is_dict(cfg.choices), "choices", "what groups say", cfg.choices, "choose by GROUP=NAME")
    for group in cfg.choices:
        chosen = hydra.runtime.choices.get(group)
        key = group if group in METHOD else f"choices.{group}"
        require(group in hydra.runtime.choices, key, "an option", "none", f"choose one by {group}=NAME")
        named = str(cfg[group].get(TARGET)).rpartition(".")[2] if OmegaConf.is_dict(cfg.get(group)) else None
        option, remedy = cfg.choices[group], f"choose by {group}=NAME"
        require(option in (chosen, named), f"choices.{group}", f"the option chosen, {chosen}", option, remedy)


def _try_optimizer(optimizer: partial[Any]) -> None:
    """Raise ValueError where the optimizer refuses its values, which it does when it is made, by the key at fault."""
    values = optimizer.keywords
    lr = values.get("lr", 1.0)
    require(lr > 0, "optimizer.lr", "a learning rate > 0", lr)
    for key in ("momentum", "dampening"):
        require(0 <= values.get(key, 0) <= 1, f"optimizer.{key}", "a number from 0 to 1", values.get(key))
    if said := _refusal(optimizer.func, values):
        alone = [key for key, value in values.items() if _refusal(optimizer.func, {key: value})]
        rest = {key: {name: value for name, value in values.items() if name != key} for key in values}
        healing = [key for key in values if not _refusal(optimizer.func, rest[key])]
        keys = ", ".join(f"optimizer.{key}" for key in alone or healing) or "optimizer"
        raise ValueError(f"{keys}: expected what {optimizer.func.__name__} takes, got {said}")


def _refusal(optimizer: Callable[..., Any], values: dict[str, Any]) -> str | None:
    try:
        optimizer([nn.Parameter(torch.zeros(1))], **values)
    except (TypeError, ValueError, RuntimeError) as error:
        return one_line(error)
    return None


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


def targets_of(family: TaskFamily) -> str:
    """Return what the targets of a family are: classes, numbers, or, where it says so by ``targets``, counts."""
    return str(getattr(family, "targets", "classes" if family.classes else "numbers"))


def _check_fit(likelihood: likelihoods.Likelihood, family: TaskFamily) -> None:
    """Raise ValueError where the family's targets are not those of the likelihood; counts are numbers too."""
    given = targets_of(family)
    taken = {given} | ({"numbers"} if given == "counts" else set())
    known = [kind for kind in vars(likelihoods).values() if isinstance(kind, type) and hasattr(kind, "targets")]
    expected = ", ".join(sorted(_option(kind) for kind in known if kind.targets in taken))
    remedy = f"the data set's targets are {given}"
    key = f"likelihood with {type(family).__name__}"
    require(likelihood.targets in taken, key, expected, _option(type(likelihood)), remedy)


def _option(likelihood: type) -> str:
    """Return the name that a likelihood has in conf/, which is its file's."""
    return likelihood.__module__.rpartition(".")[2]
