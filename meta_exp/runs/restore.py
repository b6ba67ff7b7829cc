"""A finished run, restored: its saved config and its best checkpoint become the learner that was trained.

A run's folder may come from a stranger, and neither of its files can run code. A checkpoint is loaded as weights only.
A saved config is data: in each group it may name classes of that group's modules, and of modules that the user trusts
(``runs.trust``), nothing else; it holds no interpolation; and trainer, loggers and callbacks are never built from it.
Nor does it say where to look: nothing is fetched, and data is read where META_EXP_DATA or an override says, or below
the working folder.
"""

import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from meta_exp.config.checks import one_line, require
from meta_exp.config.keys import flatten, meant, within
from meta_exp.config.overrides import parse
from meta_exp.config.schema import constructor, from_keys
from meta_exp.files import read_json
from meta_exp.installation import CONF, typed
from meta_exp.runs.build import STREAM, build_learner, imply_prior_precision, take_types
from meta_exp.runs.calibration import CALIBRATION, Calibration
from meta_exp.runs.saved import FORMAT, read_config
from meta_exp.runs.train import CHUNK_SIZE, Metrics, read_metrics
from meta_exp.runs.trust import MODULES, NEVER_BUILT, refuse_unsafe, trusted_modules, walk
from meta_exp.runs.weights import read_weights
from meta_exp.tasks.stream import TaskFamily
from meta_exp.training.data import TaskStream
from meta_exp.training.learner import Learner

OVERRIDABLE = (  # the keys that matter once a run is trained
    "dataset",
    "curvature",
    "likelihood",
    "algorithm.inner_lr",
    "evaluation_steps",
    "predictives",
    "samples",
    "each_step",
    "chunk_size",
    "test_tasks",
    "calibrate",
    "validation_tasks",
    "scores",
    "conformal_tasks",
)
LATER = ("calibrate", "conformal_tasks", "each_step")  # keys that the config of an older run may lack
STEPS = "algorithm.inner_steps"  # which people look for, and are told what to use
TUNED = "prior_precision.json"  # of a run of an earlier version
OPTIONAL = ("lr_schedule",)  # which earlier versions had not
REFITTED = ("curvature", "likelihood", "calibrate", "conformal_tasks")
HARMLESS = (
    "calibrate",
    "validation_tasks",
    "conformal_tasks",
    "test_tasks",
    "chunk_size",
    "dataset.root",
    "scores",
    "trust",
)
GROUPS = (*MODULES, *NEVER_BUILT, "experiment")
TRUST = "trust"  # the override that says which modules of one's own the config may name
LEARNED = {"likelihood.sigma_noise", "curvature.prior_precision"}  # unless their group's ``learned`` is false


@dataclass(frozen=True)
class Restored:
    """A finished run: its config with overrides applied, task family, learner with the best weights, and result."""

    folder: Path
    cfg: DictConfig
    family: TaskFamily
    learner: Learner
    metrics: Metrics
    calibration: Calibration | None = None  # that it is served with
    tuned: bool = False  # by an earlier version, tau alone


def open_run(
    folder: Path, overrides: Sequence[str] = (), trust: str | Sequence[str] = (), model: nn.Module | None = None
) -> Restored:
    """Restore the finished run in ``folder``; its data is not read, and no random generator is touched.

    What was calibrated after training is served, unless an override is about what was fitted: another curvature or
    likelihood, or ``calibrate``. ``trust`` names modules of one's own whose classes the config may name, as an override
    ``trust=[my_package]`` does. A ``model`` takes the place of the one that the config names, and gets its weights.

    Raises:
        ValueError: the run is unfinished, damaged, of another format or unsafe, or an override does not fit it.
        OSError: a file cannot be read.
    """
    folder = Path(folder)
    cfg = load_config(folder, overrides, trust)
    metrics = _load_metrics(folder)
    state = read_weights(folder / "best.ckpt")
    try:
        family = constructor(cfg.dataset, "dataset")()
        from_keys(TaskStream, cfg, *STREAM)(family)  # refuses numbers of tasks out of range
        with torch.random.fork_rng(devices=[]):
            learner = build_learner(cfg, family, deepcopy(model))
    except (TypeError, OmegaConfBaseException, HydraException) as error:
        raise ValueError(f"{folder / 'config.yaml'}: expected a config that builds, got {one_line(error)}") from error
    _fill(learner, state, folder / "best.ckpt")
    if learner.gradient.chunk_size == "auto" and isinstance(found := metrics.get(CHUNK_SIZE), int) and found >= 1:
        learner.gradient.chunk_size = found  # the same digits need the same chunks
    calibration, tuned = (None, False) if refits(overrides) else _take_calibration(learner, folder)
    return Restored(folder, cfg, family, learner.eval(), metrics, calibration, tuned)


def load_config(folder: Path, overrides: Sequence[str] = (), trust: str | Sequence[str] = ()) -> DictConfig:
    """Return the config saved in ``folder`` with ``overrides``, in Hydra's grammar, applied; see ``open_run``.

    Raises:
        ValueError: the file is not a run's config, is of another format or unsafe, or an override does not fit it.
        OSError: the file cannot be read.
    """
    folder = Path(folder)
    file = folder / "config.yaml"
    require(folder.is_dir(), str(folder), "a run's folder", "a file" if folder.exists() else "nothing there")
    require(file.is_file(), str(folder), "a run's folder, with config.yaml", "none", f"start it with {typed('train')}")
    cfg = read_config(file)
    saved = cfg.get("format")
    remedy = "restore it with the version of meta-exp that trained it, or train it again"
    require(saved == FORMAT, str(file), f"format: {FORMAT}", "none" if saved is None else f"format: {saved}", remedy)
    missing = [key for key in (*MODULES, "choices", "seed") if key not in cfg and key not in OPTIONAL]
    require(not missing, str(file), "a run's config", f"no {', '.join(missing)}", "train it again")
    require(OmegaConf.is_dict(cfg.choices), f"{file}: choices", "the names of options", cfg.choices, "train it again")
    cfg.pop("trust", None)  # not its to say
    parsed = _parse(overrides)
    words = [override.value() for override in parsed if override.key_or_group == TRUST]
    trusted = trusted_modules(_names(trust, *words))
    refuse_unsafe(OmegaConf.to_container(cfg, resolve=False), trusted, file)
    _place_data(cfg)
    _apply(cfg, [override for override in parsed if override.key_or_group != TRUST])
    refuse_unsafe(OmegaConf.to_container(cfg, resolve=False), trusted, file)
    try:
        take_types(cfg)
    except OmegaConfBaseException as error:
        raise ValueError(f"{file}: expected a run's config, got {one_line(error)}") from error
    return cfg


def _names(*given: Any) -> list[Any]:
    """Return one list of names, where each of ``given`` is one or several."""
    return [name for names in given for name in (list(names) if isinstance(names, list | tuple) else [names])]


def _place_data(cfg: DictConfig) -> None:
    """Forget where a stranger's run had its data, and that it was to be fetched; ``data`` stands in for a far place.

    META_EXP_DATA is where data sets are that can be fetched; one's own folder is found by its name in there.
    """
    if not OmegaConf.is_dict(cfg.dataset):
        return
    if "download" in cfg.dataset:
        cfg.dataset.download = False
    if "root" in cfg.dataset:
        saved = Path(str(cfg.dataset.root))
        near = not saved.is_absolute() and ".." not in saved.parts and not str(saved).startswith("~")
        shared = os.environ.get("META_EXP_DATA")
        if "download" in cfg.dataset:
            cfg.dataset.root = shared or (str(saved) if near else "data")
        elif not near:
            cfg.dataset.root = str(Path(shared or "data", saved.name.removeprefix("..") or "data"))


def _parse(overrides: Sequence[str]) -> list[Override]:
    parsed = parse(overrides)
    for override in parsed:
        require(override.value() != "???", override.key_or_group, "a value", "???")
        plain = not (override.is_delete() or override.is_sweep_override() or override.package)
        require(plain, override.input_line or "", "key=value", "a deletion, a sweep or a package")
    return parsed


def _apply(cfg: DictConfig, parsed: Sequence[Override]) -> None:
    """Apply overrides to ``cfg``: groups, then keys, as Hydra does."""
    groups = [override for override in parsed if override.key_or_group in GROUPS]
    keys = [override for override in parsed if override.key_or_group not in GROUPS]
    for override in groups:
        _choose(cfg, override.key_or_group, str(override.value() or "none"))
    for override in keys:
        _set(cfg, override)
    imply_prior_precision(cfg)
    for key in {override.key_or_group for override in keys} & LEARNED:
        group = key.partition(".")[0]
        require(not cfg[group].get("learned"), key, "a value that is not learned", "one", f"add {group}.learned=false")


def _choose(cfg: DictConfig, group: str, option: str) -> None:
    remedy = "a run has been trained with all the others"
    require(group == "curvature", f"{group}={option}", "curvature, the group that evaluation may change", group, remedy)
    options = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
    require(option in options, group, f"one of {', '.join(options)}" if options else f"a folder {CONF}", option)
    cfg.curvature = OmegaConf.load(CONF / group / f"{option}.yaml")
    cfg.choices.curvature = option


def _set(cfg: DictConfig, override: Override) -> None:
    key, value = override.key_or_group, override.value()
    content = OmegaConf.to_container(cfg, resolve=False)
    known = [".".join(path) for path, _ in walk(content)]
    told = (*OVERRIDABLE, STEPS)
    remedy = meant(key, [name for name in (*flatten(content), *LATER) if within(name, told)])
    require(override.is_add() or key in (*known, *LATER), key, "a key of the run's config", "an unknown one", remedy)
    remedy = "use evaluation_steps" if key == STEPS else ""
    require("${" not in str(value), key, "a plain value", repr(value))
    require(within(key, OVERRIDABLE), key, f"one of {', '.join(OVERRIDABLE)}", "a key that only training uses", remedy)
    if key == "dataset.ways":
        require(value == cfg.dataset.ways, key, f"{cfg.dataset.ways}, which the network was trained for", value)
    try:
        OmegaConf.update(cfg, key, value, merge=True, force_add=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{key}: expected another structure, got {value}; {one_line(error)}") from error


def _load_metrics(folder: Path) -> Metrics:
    file = folder / "metrics.json"
    remedy = "it is written last; train the run to its end"
    require(file.is_file(), str(folder), "a finished run, with metrics.json", "an unfinished one", remedy)
    return read_metrics(file)


def _fill(learner: Learner, state: dict[str, Tensor], file: Path) -> None:
    """Load ``state`` into ``learner``; a hyper-parameter that an override made fixed is left out."""
    wanted = {name: tuple(value.shape) for name, value in learner.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items() if name in wanted or "hyper." not in name}
    for name in [*wanted, *found]:
        expected, got = (f"{name} of shape {s[name]}" if name in s else f"no {name}" for s in (wanted, found))
        require(expected == got, str(file), expected, got, "this checkpoint is of another network than config.yaml")
    learner.load_state_dict({name: state[name] for name in wanted})


def refits(overrides: Sequence[str]) -> bool:
    """Whether ``overrides`` are about what calibration has fitted."""
    return any(within(override.lstrip("+").partition("=")[0], REFITTED) for override in overrides)


def keeps(overrides: Sequence[str]) -> bool:
    """Whether what is fitted under ``overrides`` is the run's own, to be served whenever it is restored."""
    return all(within(override.lstrip("+").partition("=")[0], HARMLESS) for override in overrides)


def _take_calibration(learner: Learner, folder: Path) -> tuple[Calibration | None, bool]:
    """Take what was fitted after training; of a run of an earlier version its tuned tau, for all predictives.

    Returns the first, and whether there was the second.
    """
    calibration = None
    if (file := folder / CALIBRATION).is_file():
        try:
            calibration = Calibration.read(folder)
            calibration.serve(learner)
        except KeyError as error:
            raise ValueError(f"{file}: expected values that the run leaves free, got {one_line(error)}") from error
    if tuned := (file := folder / TUNED).is_file():
        tau = read_json(file, "a tuned prior_precision").get("prior_precision", 0)
        require(isinstance(tau, float | int) and tau > 0, f"{file}: prior_precision", "a precision > 0", tau)
        learner.set_prior_precision(tau)
    return calibration, tuned
