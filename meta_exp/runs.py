"""A run: from a composed config to a folder that holds everything about one training.

config.yaml    the resolved config          best.ckpt, last.ckpt   by validation loss, and the last step
train.log      what happened                plots/                 pictures of new tasks
curves.csv     validation scores by step    prior_precision.json    a tau tuned after training, and on what
metrics.json   the result, written last and atomically: its presence means that the run is finished
"""

import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.table import Table

from meta_exp import plots
from meta_exp.algorithms import LLAMA
from meta_exp.checks import require
from meta_exp.curves import LearningCurve
from meta_exp.learner import Learner
from meta_exp.likelihood import Categorical
from meta_exp.progress import TrainingProgress
from meta_exp.schema import constructor, from_keys
from meta_exp.scores import score_tasks, summarize
from meta_exp.tasks.stream import TaskFamily, TaskStream
from meta_exp.tuning import check_criterion, tune

log = logging.getLogger(__name__)
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # it sets INFO when imported
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # a compiler for CUDA is not needed
for message in (
    ".*treespec, LeafSpec.*",  # Lightning, torch.func.jvp and torch.compile ask PyTorch in ways that it has deprecated
    ".*torch.jit.script.*",
    ".*_prims_common.check.*",
    "Checkpoint directory .* exists and is not empty",  # a run's folder holds its log before its checkpoints
):
    warnings.filterwarnings("ignore", message=message)
Metrics = dict[str, Any]
TUNED = "prior_precision.json"
FORMAT = 1  # of a run's folder: raise it with any change after which older folders cannot be restored


@dataclass
class Run:
    """What a config describes, built: the task family with its stream, the learner and the trainer."""

    family: TaskFamily
    stream: TaskStream
    learner: Learner
    trainer: Trainer
    best: ModelCheckpoint
    progress: TrainingProgress


def build(cfg: DictConfig) -> Run:
    """Build everything that ``cfg`` names; raises ValueError where a setting is out of range."""
    for key in ("max_steps", "val_check_interval", "log_every_n_steps"):
        value = cfg.trainer[key]
        require(isinstance(value, int) and value >= 1, f"trainer.{key}", "an integer, at least 1", value)
    lr = cfg.optimizer.lr
    require(isinstance(lr, float | int) and lr > 0, "optimizer.lr", "a learning rate > 0", lr)
    family = constructor(cfg.dataset, "dataset")()
    stream = from_keys(TaskStream, cfg, "seed", "validation_tasks", "test_tasks", "num_tasks")(family)
    seed_everything(cfg.seed, verbose=False)
    learner = build_learner(cfg, family)
    check_criterion(cfg.tune_prior_precision, learner.algorithm)
    callbacks = {name: constructor(part, f"callbacks.{name}")() for name, part in cfg.callbacks.items()}
    if (cfg.logger or {}).get("wandb", {}).get("mode") == "offline":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else wandb looks up the host of its own telemetry
    interval = min(cfg.trainer.val_check_interval, cfg.trainer.max_steps)
    loggers = [constructor(part, f"logger.{name}")() for name, part in (cfg.logger or {}).items()]
    try:
        trainer = constructor(cfg.trainer, "trainer")(
            callbacks=[*callbacks.values(), LearningCurve(Path(cfg.run_dir) / "curves.csv")],
            logger=loggers,
            val_check_interval=interval,
        )
    except MisconfigurationException as error:
        raise ValueError(f"trainer.accelerator={cfg.trainer.accelerator}: {error}") from error
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    remedy = "a sweep runs its jobs side by side, with hydra/launcher=joblib, submitit_slurm or ray"
    require(trainer.world_size == 1 or not in_sweep, "trainer.devices in a sweep", "1", cfg.trainer.devices, remedy)
    return Run(family, stream, learner, trainer, callbacks["best"], callbacks["progress"])


def build_learner(cfg: DictConfig, family: TaskFamily) -> Learner:
    """Build the model with its likelihood, curvature and algorithm."""
    likelihood = constructor(cfg.likelihood, "likelihood")()
    expected, got = ("categorical", "gaussian") if family.classes else ("gaussian", "categorical")
    fits = isinstance(likelihood, Categorical) == family.classes
    require(fits, f"likelihood with {type(family).__name__}", expected, got)
    model = constructor(cfg.model, "model")(input_shape=family.input_shape, outputs=family.outputs)
    curvature = (
        constructor(cfg.curvature, "curvature")(model=model, input_shape=family.input_shape) if cfg.curvature else None
    )
    algorithm = constructor(cfg.algorithm, "algorithm")(model=model, likelihood=likelihood, curvature=curvature)
    if isinstance(algorithm, LLAMA):
        cfg.algorithm.eta = algorithm.weight  # the saved config and the dashboards say the number
    learner = from_keys(Learner, cfg, "evaluation_steps", "predictives", "samples", "chunk_size", "compile")
    return learner(algorithm, constructor(cfg.optimizer, "optimizer"))


def train(cfg: DictConfig) -> float:
    """Train, evaluate and picture one run in ``cfg.run_dir``; return the best validation loss, for searches.

    Raises:
        ValueError: a setting is out of range; nothing was trained.
        OSError: data is missing, or the run's folder cannot be written.
        FloatingPointError: the objective became infinite or NaN; last.ckpt holds the last good weights.
    """
    folder = Path(cfg.run_dir)
    cfg.run_name = run_name(folder)
    run = build(cfg)
    if run.trainer.is_global_zero:
        (folder / "metrics.json").unlink(missing_ok=True)
        (folder / "config.yaml").write_text(f"format: {FORMAT}\n" + OmegaConf.to_yaml(cfg, resolve=True))
    else:  # of several processes one writes the folder and speaks; the others have their errors to say
        logging.getLogger("meta_exp").setLevel(logging.ERROR)
    log.info("run folder: %s", folder)
    finished = False
    try:
        for logger in run.trainer.loggers:
            logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
        loss = _train(cfg, run, folder)
        finished = True
        return loss
    finally:
        # the next job of a sweep would go on writing into a dashboard run that is still open
        if wandb := sys.modules.get("wandb"):
            wandb.finish(exit_code=0 if finished else 1)


def _train(cfg: DictConfig, run: Run, folder: Path) -> float:
    learner, trainer = run.learner, run.trainer
    if learner.algorithm.curvature is not None and not isinstance(learner.algorithm, LLAMA):
        log.info("algorithm=maml trains without a curvature; the one given is used in evaluation only")
    started = time.perf_counter()
    try:
        trainer.fit(learner, run.stream)
    except FloatingPointError:
        # a GPU is looked at every few steps only: where the weights are lost by then, the checkpoint before stays
        if all(parameter.isfinite().all() for parameter in learner.parameters()):
            trainer.save_checkpoint(folder / "last.ckpt")
        raise
    train_s = time.perf_counter() - started
    trainer.save_checkpoint(folder / "last.ckpt")
    assert run.best.best_model_score is not None
    validation_loss = float(run.best.best_model_score)
    if not trainer.is_global_zero:
        return validation_loss
    best = torch.load(folder / "best.ckpt", weights_only=True)
    learner.load_state_dict(best["state_dict"])
    if cfg.tune_prior_precision:
        tuning = tune(learner, run.stream.val_dataloader(), cfg.tune_prior_precision)
        write_json(folder / TUNED, asdict(tuning))
        learner.set_prior_precision(tuning.prior_precision)
        log.info("tau tuned on validation tasks: %g (trained with %g)", tuning.prior_precision, tuning.trained_with)
        if tuning.at_edge:
            log.warning("tau = %g lies at the edge of the values tried", tuning.prior_precision)
    scores = summarize(score_tasks(learner, run.family, cfg.test_tasks, trainer.strategy.root_device))
    for logger in trainer.loggers:
        logger.log_metrics({k: v for k, v in scores.items() if not k.endswith("_ci95")}, trainer.global_step)
    pictures = plots.draw(learner, run.family, _title(cfg, best["global_step"]), folder / "plots")
    metrics = {
        "algorithm": cfg.choices.algorithm,
        "dataset": cfg.choices.dataset,
        "curvature": cfg.choices.curvature,
        "seed": cfg.seed,
        "steps": trainer.global_step,
        "best_step": best["global_step"],
        "parameters": sum(p.numel() for p in learner.model.parameters()),
        "validation/loss": validation_loss,
        **scores,
        **{f"train/{name.removeprefix('log_')}": float(value.detach().exp()) for name, value in learner.hyper.items()},
        "test/prior_precision": learner.prior_precision,
        "train/tasks_per_second": run.progress.tasks_seen / run.progress.training_s,
        "time/train_s": train_s,
        **provenance(),
    }
    write_json(folder / "metrics.json", metrics)
    print_table(metrics, learner.predictives, learner.algorithm.likelihood.metric)
    log.info("pictures: %s", ", ".join(str(file) for file in pictures if file.suffix == ".png"))
    return validation_loss


def run_name(folder: Path) -> str:
    """Return a name that is the folder's path below outputs/, without separators; dashboards know the run by it."""
    parts = folder.absolute().parts
    below = parts[len(parts) - parts[::-1].index("outputs") :] if "outputs" in parts else parts[-1:]
    return re.sub(r"[^\w.-]", "-", "_".join(below))


def provenance() -> Metrics:
    """Return the versions that made a result, and the commit of the code where it is a git checkout."""
    packages = ("meta-exp", "torch", "pytorch-lightning", "hydra-core", "numpy")
    commit = None
    if git := shutil.which("git"):
        command = [git, "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    return {
        "version/python": platform.python_version(),
        **{f"version/{package}": version(package) for package in packages},
        "git_commit": commit,
    }


def write_json(file: Path, metrics: Metrics) -> None:
    """Write ``metrics`` so that the file is either whole or absent; values that are not finite become null."""
    clean = {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in metrics.items()}
    part = file.with_suffix(".part")
    part.write_text(json.dumps(clean, indent=2, allow_nan=False) + "\n")
    os.replace(part, file)


def print_table(metrics: Metrics, predictives: list[str], metric: str) -> None:
    """Print the result of a run: each predictive's metric and NLL, and the metric by number of inner steps."""

    def cell(name: str) -> str:
        return f"{metrics[f'test/{name}']:.4f} ± {metrics[f'test/{name}_ci95']:.4f}"

    title = (
        f"{metrics['algorithm']} on {metrics['dataset']}, seed {metrics['seed']}: {metrics['test/tasks']} test tasks"
    )
    table = Table("predictive", metric, "NLL per point", title=title, title_justify="left")
    for kind in predictives:
        table.add_row(kind, cell(f"{kind}/{metric}"), cell(f"{kind}/nll"))
    table.add_section()
    for name in metrics:
        prefix = f"test/map/{metric}_step_"
        if name.startswith(prefix) and not name.endswith("_ci95"):
            steps = name.removeprefix(prefix)
            table.add_row(f"map after {steps} step{'s' * (steps != '1')}", cell(name.removeprefix("test/")), "")
    Console().print(table)


def _title(cfg: DictConfig, step: int) -> str:
    curvature = f", curvature {cfg.choices.curvature}" if cfg.curvature else ""
    return f"{cfg.choices.algorithm} on {cfg.choices.dataset}{curvature}, seed {cfg.seed}, step {step}"
