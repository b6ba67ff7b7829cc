"""The training's progress for people: a bar in a terminal; in the log a line at each validation and each minute.

Below a notebook's cell, where no log is shown, a line that is replaced by the next stands for the bar.

The screen gets a tenth of the log's validations, for the bar shows the last one. Speed and time left are those of the
last half minute, and never of the time before the code was compiled.
"""

import logging
import time
from collections import deque
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from meta_exp.terminal import Screen, duration, in_notebook
from meta_exp.training.learner import Learner
from meta_exp.training.panels import served

log = logging.getLogger(__name__)
REFRESH_S = 0.2  # of the bar
WINDOW = 150  # of its refreshes, by which the speed is measured
LINE_S = 60.0  # at most between two lines of the log
LINES = 10  # of validations on the screen
BAR = 10  # characters


class _State(ProgressColumn):
    """Step, time left and what there is room for; cut at the end, in one line."""

    def __init__(self, progress: "TrainingProgress") -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis", ratio=1))
        self.progress = progress

    def render(self, task: Task) -> Text:
        """Return the words beside the bar."""
        return Text(self.progress.state(int(task.completed), int(task.total or 0), self.progress.scores))


class _CellLine:
    """A line below a notebook's cell, in which the next stands in place of the last."""

    def __init__(self) -> None:
        self.shown: Any = None

    def say(self, words: str) -> None:
        """Show ``words``."""
        from IPython.display import display

        line = {"text/plain": words}
        if self.shown is None:
            self.shown = display(line, raw=True, display_id=True)
        else:
            self.shown.update(line, raw=True)


class TrainingProgress(Callback):
    """Steps, time left, tasks a second, and the last validation scores."""

    def __init__(self) -> None:
        columns = BarColumn(BAR), _State(self)
        self.bar = Progress(*columns, console=Console(), refresh_per_second=1 / REFRESH_S, transient=True, expand=True)
        self.bar.disable = not self.bar.console.is_terminal or not Screen.alone or in_notebook()
        self.cell_line = _CellLine() if self.bar.console.is_jupyter and not log.isEnabledFor(logging.INFO) else None
        self.task = self.bar.add_task("")
        self.scores = ""
        self.tasks_seen, self.tasks_a_step = 0, 1
        self.earlier_s = 0.0  # of the parts of this run before it was continued
        self.started = self.logged = self.shown = time.perf_counter()
        self.shown_step: int | None = None
        self.ended: float | None = None
        self.compiling: float | None = None  # since when
        self.about_s = 0.0  # that it takes
        self.seen: deque[tuple[float, int]] = deque(maxlen=WINDOW)  # when how many tasks were seen

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self.started = self.logged = self.shown = time.perf_counter()
        self.ended, self.shown_step = None, None
        self.tasks_a_step = trainer.datamodule.family.meta_batch * trainer.accumulate_grad_batches  # type: ignore[attr-defined]
        self._measure_from_here()
        self.bar.disable |= trainer.global_rank != 0
        self.bar.update(self.task, total=trainer.max_steps, completed=trainer.global_step)
        if not self.bar.disable:
            Screen.console = self.bar.console
        self.bar.start()
        self._say()

    @property
    def training_s(self) -> float:
        """Seconds of training so far, validation included, over all parts of this run."""
        return self.earlier_s + (self.ended or time.perf_counter()) - self.started

    @property
    def tasks_per_second(self) -> float:
        """Training tasks a second of late, validation included; 0 where nothing tells yet."""
        since, seen = self.seen[0]
        return (self.tasks_seen - seen) / max(time.perf_counter() - since, 1e-9)

    def state(self, done: int, total: int, scores: str) -> str:
        """Return where the training stands, in the order of what matters."""
        parts = [f"step {done} of {total}"]
        if self.compiling is not None:
            parts.append(f"compiling, about {self.about_s:.0f} s: {time.perf_counter() - self.compiling:.0f} s so far")
        elif speed := self.tasks_per_second:
            parts += [f"{duration((total - done) * self.tasks_a_step / speed)} left", f"{speed:,.0f} tasks/s"]
        return ", ".join([*parts, *([scores] if scores else [])])

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that goes on has to know of its earlier parts."""
        return {"tasks_seen": self.tasks_seen, "training_s": self.training_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the counts of an earlier part of this run."""
        self.tasks_seen, self.earlier_s = state_dict["tasks_seen"], state_dict["training_s"]
        self.started = self.ended = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note that the step will compile."""
        assert isinstance(pl_module, Learner)
        about_s = pl_module.gradient.about_to_compile(batch)
        if about_s is not None:
            self.compiling, self.about_s = time.perf_counter(), about_s
            self._say()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and move the bar a few times a second."""
        self.tasks_seen += trainer.datamodule.family.meta_batch  # type: ignore[attr-defined]
        if self.compiling is not None:
            self.compiling = None
            self._measure_from_here()
        now = time.perf_counter()
        if now - self.seen[-1][0] >= REFRESH_S:
            self.seen.append((now, self.tasks_seen))
            self.bar.update(self.task, completed=trainer.global_step)
            self._say()
        if now - self.logged >= LINE_S:
            self._log(trainer, "")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the validation scores of what is served; they are logged too, for who watches a file or a pipe."""
        assert isinstance(pl_module, Learner)
        scores, metric = trainer.callback_metrics, pl_module.algorithm.likelihood.metric
        kind = served(scores, "validation")
        nll, score = (float(scores[f"validation/{kind}/{name}"]) for name in ("nll", metric))
        self.scores = f"validation NLL {nll:.4g}, {metric} {score:.4g}"
        self._log(trainer, self.scores)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar; what stays below a cell is the end."""
        self._close()
        if self.cell_line:
            self.cell_line.say(f"step {trainer.global_step} of {trainer.max_steps}, {self.scores}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error stands below it."""
        self._close()

    def _log(self, trainer: Trainer, scores: str) -> None:
        done, total = trainer.global_step, trainer.max_steps
        self.logged = time.perf_counter()
        late = self.shown_step is None or done - self.shown_step >= total / LINES or done == total
        minor = not (late or self.logged - self.shown >= LINE_S)
        if not minor:
            self.shown, self.shown_step = self.logged, done
        log.info("%s", self.state(done, total, scores), extra={"minor": minor})

    def _say(self) -> None:
        if self.cell_line:
            task = self.bar.tasks[0]
            self.cell_line.say(self.state(int(task.completed), int(task.total or 0), self.scores))

    def _measure_from_here(self) -> None:
        self.seen.clear()
        self.seen.append((time.perf_counter(), self.tasks_seen))

    def _close(self) -> None:
        self.ended = time.perf_counter()
        self.bar.stop()
        Screen.console = None
