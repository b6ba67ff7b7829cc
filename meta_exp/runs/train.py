"""A run: from a composed config to a folder that holds everything about one training.

config.yaml    the resolved config          best.ckpt, last.ckpt    by validation, and the last step
train.log      what happened                plots/                  pictures of new tasks, if its family has some
curves.csv     validation scores by step    calibration.json        what was fitted after training
history.jsonl  all that was logged          overrides.yaml          the command's
made_by.jsonl  commit and versions, by part  .lock                  held by the process that writes here
metrics.json   the result, written whole and last: its presence means that the run is finished
"""

import logging
import os
import shlex
from contextlib import nullcontext
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from meta_exp.algorithms import LLAMA, LLAMAPredictive
from meta_exp.files import read_json, write_json, write_whole
from meta_exp.installation import typed
from meta_exp.runs import pictures
from meta_exp.runs.build import Run, build, has_curvature, resolve
from meta_exp.runs.calibration import CALIBRATION, Calibration, calibrate
from meta_exp.runs.folder import only_writer, refuse_other_config
from meta_exp.runs.protocol import protocol_of
from meta_exp.runs.provenance import note_part, provenance
from meta_exp.runs.saved import snapshot
from meta_exp.runs.test_set import describe_failed, score_tasks, summarize
from meta_exp.scoring.metrics import failed_tasks
from meta_exp.scoring.yardstick import BAYES
from meta_exp.tasks.stream import draw_tasks
from meta_exp.terminal import Screen, plus_minus
from meta_exp.terminal import cell as escaped
from meta_exp.training.allocator import keep_freed_memory
from meta_exp.training.checkpoints import read_checkpoint
from meta_exp.training.data import fresh_batches
from meta_exp.training.learning_curve import mend_curve

SERVED_NLL = "validation/served_nll"  # in metrics.json
SCORE = "validation/score"  # which earlier versions had not
CHUNK_SIZE = "chunk_size"  # there too, where a trial has found it
PREDICTIVES = {  # what stands in the table's rows
    "map": "the adapted network alone",
    "linearized": "with the uncertainty of its parameters, by its linear model",
    "sample": "by networks drawn from its posterior",
}
METRICS = {"mse": "mse: squared error of the mean", "accuracy": "accuracy: share of right classes"}
STEPS_SHOWN = (0, 1, 2, 5, 10, 20, 50, 100)  # of adaptation
log = logging.getLogger(__name__)
Metrics = dict[str, Any]


class Learnt(NamedTuple):
    """What a training found: the step of the best weights, and what was fitted after it."""

    best_step: int
    calibration: Calibration | None


def train(cfg: DictConfig) -> float:
    """Train, evaluate and picture one run in ``cfg.run_dir``; return what searches go by (``criterion``).

    A run that is finished is left as it is, and one that was interrupted goes on from its last checkpoint.

    Raises:
        ValueError: a setting is out of range, the folder's run has another config, or another process writes it.
        OSError: data is missing, or the run's folder cannot be written.
        FloatingPointError: the objective became infinite or NaN; last.ckpt holds the last good weights.
        SystemExit: a signal asked the process to end; the run is saved.
    """
    cfg = resolve(cfg)
    keep_freed_memory()
    look_for_gpus_once()
    if (cfg.logger or {}).get("wandb", {}).get("mode") == "offline":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else wandb looks up the host of its own telemetry
    folder = Path(cfg.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder) if _main_process() else nullcontext():
        return _continue(cfg, folder)


def look_for_gpus_once() -> None:
    """Where there is none let PyTorch's optimizers not look for a driver at each step: that takes 0.1 ms."""
    if not torch.cuda.is_available():
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def read_metrics(file: Path) -> Metrics:
    """Return the result of a finished run, its ``metrics.json``; raises ValueError where it is damaged."""
    return read_json(file, "the metrics of a run", "remove it, and the command that trained the run writes it anew")


def criterion(metrics: Metrics) -> float:
    """Return what a search goes by, on validation tasks: the calibrated NLL of what is served, or what chose it."""
    value = next((metrics[key] for key in (SERVED_NLL, SCORE, "validation/loss") if key in metrics), None)
    return inf if value is None or value != value else float(value)


def _main_process() -> bool:
    """Whether this process writes the run's folder: of several on one run, the first."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def _continue(cfg: DictConfig, folder: Path) -> float:
    """Train the run from where it stands, or return the loss of one that is finished."""
    run = build(cfg)
    config = snapshot(cfg)
    last, result = folder / "last.ckpt", folder / "metrics.json"
    step = read_checkpoint(last)["global_step"] if last.exists() else 0
    changed = refuse_other_config(folder, config, trained=result.exists() or step >= cfg.trainer.max_steps)
    if result.exists() and not changed:
        log.info("finished already, skipped: %s", folder)
        return criterion(read_metrics(result))
    draw_tasks(run.family, "validation", 0, 1)  # opens the data: where there are none, nothing is begun
    if result.exists():
        log.info("evaluated anew: %s", "; ".join(changed))
    if run.trainer.is_global_zero:
        result.unlink(missing_ok=True)  # it is of the config that now goes
        write_whole(folder / "config.yaml", config)
        if HydraConfig.initialized():
            write_whole(folder / "overrides.yaml", yaml.safe_dump(list(HydraConfig.get().overrides.task)))
    else:  # of several processes one writes the folder and speaks; the others have their errors to say
        logging.getLogger("meta_exp").setLevel(logging.ERROR)
    log.info("run folder: %s", folder)
    tasks, device = run.family.meta_batch * cfg.trainer.accumulate_grad_batches, run.trainer.strategy.root_device
    said = "training %s on %s: %d steps of %d tasks, on %s"
    log.info(said, cfg.choices.algorithm, cfg.choices.dataset, cfg.trainer.max_steps, tasks, device)
    if step:
        log.info("continued from step %d of %d", step, cfg.trainer.max_steps)
        if run.trainer.is_global_zero:
            mend_curve(folder / "curves.csv", step)
    if run.trainer.is_global_zero and (changed := note_part(folder, step)):
        log.warning("continued under other code or packages, so not bit by bit: %s", "; ".join(changed))
    finished = False
    try:
        run.recorder.begin(OmegaConf.to_container(cfg, resolve=True), folder, step)  # type: ignore[arg-type]
        loss = _train(cfg, run, folder, last if step else None)
        finished = True
        return loss
    except (KeyboardInterrupt, SystemExit):
        if result.exists():
            log.info("the run is done: %s", result)
        elif run.trainer.global_step >= cfg.trainer.max_steps:
            log.info("the training is done: %s\nto go on with its test: %s", folder, _command(folder))
        elif last.exists():
            log.info("to go on: %s", _command(folder))
        raise
    finally:
        run.recorder.close(exit_code=0 if finished else 1)


def _command(folder: Path) -> str:
    """Return the command that goes on with the run in ``folder``."""
    if not HydraConfig.initialized():
        return f"hydra.run.dir={folder}"
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return "the sweep's command again"
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    return f"{typed('train')} {shlex.join([*hydra.overrides.task, f'hydra.run.dir={folder}'])}"


def learn(run: Run, folder: Path, calibrated: bool | None, checkpoint: Path | None = None) -> Learnt | None:
    """Train the run's learner with its checkpoints in ``folder``, give it the best weights, and fit what it serves.

    Of several processes the first has a result, and the others none.

    Raises:
        FloatingPointError: the objective became infinite or NaN.
    """
    learner, trainer = run.learner, run.trainer
    try:
        trainer.fit(learner, run.stream, ckpt_path=checkpoint, weights_only=True)
    except FloatingPointError:
        # a GPU is looked at every few steps only: where the weights are lost by then, the checkpoint before stays
        if all(parameter.isfinite().all() for parameter in learner.parameters()):
            trainer.save_checkpoint(folder / "last.ckpt")
        raise
    if not trainer.is_global_zero:
        return None
    best = read_checkpoint(folder / "best.ckpt")
    learner.load_state_dict(best["state_dict"])
    said = "the best weights are those of step %d, by %s: %.4g"
    log.info(said, best["global_step"], run.best.monitor, run.best.score)
    calibration = None
    if calibrated:
        fresh = fresh_batches(run.family, run.stream.conformal_tasks)
        log.info("calibrating on validation tasks, and intervals or sets on %d fresh ones", run.stream.conformal_tasks)
        calibration = calibrate(learner, run.stream.val_dataloader(), fresh)
        calibration.serve(learner)
        words = "calibrated on %d validation tasks: NLL before and after, and what was fitted\n%s"
        log.info(words, calibration.validation_tasks, calibration.describe())
    return Learnt(best["global_step"], calibration)


def about(cfg: DictConfig, run: Run, best_step: int) -> Metrics:
    """Return what a result begins with: of what it is."""
    return {
        "algorithm": cfg.choices.algorithm,
        "dataset": cfg.choices.dataset,
        "curvature": cfg.choices.curvature,
        "seed": cfg.seed,
        "steps": run.trainer.global_step,
        "best_step": best_step,
        "parameters": sum(p.numel() for p in run.learner.model.parameters()),
        "validation/loss": run.best.loss,
        SCORE: run.best.least,
    }


def _train(cfg: DictConfig, run: Run, folder: Path, checkpoint: Path | None) -> float:
    learner, trainer = run.learner, run.trainer
    if learner.algorithm.curvature is not None and not isinstance(learner.algorithm, LLAMA | LLAMAPredictive):
        log.info("algorithm=%s trains without a curvature; the one given is for evaluation", learner.algorithm.name)
    learnt = learn(run, folder, cfg.calibrate, checkpoint)
    assert run.best.loss is not None
    if learnt is None:
        return run.best.loss
    fitted: Metrics = {}
    (folder / CALIBRATION).unlink(missing_ok=True)  # of an evaluation before
    if calibration := learnt.calibration:
        calibration.write(folder)
        fitted = {f"calibration/{kind}/{n}": v for kind, found in calibration.values.items() for n, v in found.items()}
        served = [kind for kind in learner.algorithm.predictives if kind in learner.predictives][-1]
        fitted[SERVED_NLL] = calibration.nll[served]
    steps = learner.evaluation_steps
    log.info("testing on %d new tasks%s", cfg.test_tasks, f", after {steps} steps of adaptation each" * (steps > 0))
    scored = score_tasks(learner, run.family, cfg.test_tasks, trainer.strategy.root_device)
    scores, failed = summarize(scored), failed_tasks(scored.each)
    if failed:
        log.warning(describe_failed(failed, cfg.test_tasks))
    run.recorder.log({k: v for k, v in scores.items() if not k.endswith("_ci95")}, trainer.global_step)
    metrics = {
        **about(cfg, run, learnt.best_step),
        **{f"protocol/{key}": value for key, value in protocol_of(learner, run.family, cfg.test_tasks).items()},
        **scores,
        **({"failed_tasks": failed} if failed else {}),
        **{f"train/{name}": value for name, value in learner.shown().items()},
        "prior_precision": learner.prior_precision,
        **({CHUNK_SIZE: learner.gradient.chunk_size} if cfg.get(CHUNK_SIZE) == "auto" else {}),
        **fitted,
        "train/tasks_per_second": run.progress.tasks_seen / run.progress.training_s,
        "time/train_s": run.progress.training_s,
        "time/compile_s": learner.gradient.compile_s,
        **provenance(),
    }
    title = _title(cfg, learnt.best_step)
    drawings = pictures.draw_or_warn(learner, run.family, title, folder / "plots", "the run is finished")
    if drawings:
        run.recorder.log_pictures(drawings, trainer.global_step)
    write_json(folder / "metrics.json", metrics)
    print_table(metrics, learner.predictives, learner.algorithm.likelihood.metric)
    in_folder = {"minor": bool(Screen.run)}  # which a sweep's line has named
    if drawings:
        names = ", ".join(str(file) for file in drawings if file.suffix == ".png")
        log.info("pictures: %s", names, extra=in_folder)
    log.info("the result: %s", folder / "metrics.json", extra=in_folder)
    return criterion(metrics)


def print_table(metrics: Metrics, predictives: list[str], metric: str) -> None:
    """Print the result of a run: each predictive's metric and NLL, and the metric by number of inner steps.

    Where the family has an exact predictor, its own row and what each lacks beside it are there too. In a sweep a line
    for each predictive has to do: tables of several runs would stand between each other's lines.
    """

    def cell(name: str) -> str:
        known = f"test/{name}" in metrics
        return plus_minus(metrics[f"test/{name}"], metrics[f"test/{name}_ci95"]) if known else ""

    if Screen.run:
        for kind in predictives:
            log.info("test, %s: %s %s, NLL per point %s", kind, metric, cell(f"{kind}/{metric}"), cell(f"{kind}/nll"))
        return
    console = Console()
    words = f"{metrics['algorithm']} on {metrics['dataset']}, seed {metrics['seed']}: {metrics['test/tasks']} new tasks"
    console.print(escaped(words), soft_wrap=True, highlight=False)
    best = [BAYES] if f"test/{BAYES}/nll" in metrics else []
    columns = {metric: metric, "nll": "NLL per point"} | ({"regret": "regret"} if best else {})
    table = Table("predictive", *columns.values())
    for kind in [*predictives, *best]:
        table.add_row(kind, *(cell(f"{kind}/{score}") for score in columns))
    table.add_section()
    for steps in STEPS_SHOWN:
        if f"test/map/{metric}_step_{steps}" in metrics:
            after = f"map after {steps} step{'s' * (steps != 1)}" if steps else "before adaptation"
            table.add_row(after, cell(f"map/{metric}_step_{steps}"))
    console.print(table)
    kinds = [f"{kind}: {PREDICTIVES[kind]}" for kind in predictives]
    said = "%s; NLL: -log p(y), lower is better\n±: the half width of the 95 %% interval over tasks\n%s"
    log.info(said, METRICS.get(metric, metric), "\n".join(kinds))


def _title(cfg: DictConfig, step: int) -> str:
    curvature = f", curvature {cfg.choices.curvature}" if has_curvature(cfg) else ""
    return f"{cfg.choices.algorithm} on {cfg.choices.dataset}{curvature}, seed {cfg.seed}, step {step}"
