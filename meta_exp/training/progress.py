"""The training's progress for people: a bar in a terminal; in the log a line at each validation and each minute."""

import logging
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from meta_exp.training.learner import Learner

log = logging.getLogger(__name__)
REFRESH_S = 0.2  # of the bar
LINE_S = 60.0  # at most between two lines of the log


class TrainingProgress(Callback):
    """Steps, tasks a second, time left, and the last validation scores."""

    def __init__(self) -> None:
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]:,.0f} tasks/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[scores]}"),
        )
        self.bar = Progress(*columns, auto_refresh=False, transient=True)
        self.bar.disable = not self.bar.console.is_terminal
        self.task = self.bar.add_task("meta-training", speed=0.0, scores="")
        self.tasks_seen = 0
        self.earlier_tasks, self.earlier_s = 0, 0.0  # of the parts of this run before it was continued
        self.started = self.refreshed = self.logged = time.perf_counter()
        self.ended: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self.started = self.refreshed = self.logged = time.perf_counter()
        self.ended = None
        self.earlier_tasks = self.tasks_seen
        self.bar.disable |= trainer.global_rank != 0
        self.bar.update(self.task, total=trainer.max_steps, completed=trainer.global_step)
        self.bar.start()

    @property
    def training_s(self) -> float:
        """Seconds of training so far, validation included, over all parts of this run."""
        return self.earlier_s + (self.ended or time.perf_counter()) - self.started

    @property
    def tasks_per_second(self) -> float:
        """Training tasks a second of this part of the run, validation included."""
        return (self.tasks_seen - self.earlier_tasks) / max(time.perf_counter() - self.started, 1e-9)

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that goes on has to know of its earlier parts."""
        return {"tasks_seen": self.tasks_seen, "training_s": self.training_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the counts of an earlier part of this run."""
        self.tasks_seen, self.earlier_s = state_dict["tasks_seen"], state_dict["training_s"]
        self.started = self.ended = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and redraw the bar a few times a second."""
        self.tasks_seen += trainer.datamodule.family.meta_batch  # type: ignore[attr-defined]
        now = time.perf_counter()
        if now - self.refreshed >= REFRESH_S:
            self.refreshed = now
            self.bar.update(self.task, completed=trainer.global_step, speed=self.tasks_per_second, refresh=True)
        if now - self.logged >= LINE_S:
            self._log(trainer, "training")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the validation scores; they are logged too, so that a file or a pipe tells how far the run is."""
        assert isinstance(pl_module, Learner)
        metric = pl_module.algorithm.likelihood.metric
        loss, score = (float(trainer.callback_metrics[f"validation/{name}"]) for name in ("loss", f"map/{metric}"))
        scores = f"validation loss {loss:.4g}, {metric} {score:.4g}"
        self.bar.update(self.task, scores=scores)
        self._log(trainer, scores)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error stands below it."""
        self._close()

    def _log(self, trainer: Trainer, state: str) -> None:
        self.logged = time.perf_counter()
        done, speed = trainer.global_step, self.tasks_per_second
        left = (trainer.max_steps - done) * self.tasks_seen / max(done, 1) / speed if speed else 0.0
        line = "step %d of %d: %s; %.0f tasks/s, %.0f s left"
        log.info(line, done, trainer.max_steps, state, speed, left)

    def _close(self) -> None:
        self.ended = time.perf_counter()
        self.bar.stop()
