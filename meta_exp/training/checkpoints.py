"""What a run keeps of its training: best.ckpt by validation loss, and last.ckpt, from which it goes on.

A checkpoint stands between two steps, with the validation that was due, and is written under another name, flushed to
the disk and then renamed: whenever a process dies, ``last.ckpt`` is a whole one, and a run continued from it retraces
the steps of an undisturbed one bit by bit. Signals are heeded between two steps: the run is saved there, and then the
handler that was found before the training decides. A step that takes longer than GRACE_S, as the first one does where
it compiles, or a long validation is not waited for: the run then ends from the checkpoint before. On the command line
SIGTERM and SIGINT end with exit code 128 + signal; in a job of SLURM submitit's handlers ignore SIGTERM, which may come
first, and queue the job again on SIGUSR2.
"""

import io
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from meta_exp.config.checks import one_line, require, require_at_most
from meta_exp.files import replacing
from meta_exp.training import lightning

log = logging.getLogger(__name__)
MINUTES = 10**6  # two years
SIGNALS = (signal.SIGTERM, signal.SIGINT)
HANDED_ON = (*SIGNALS, signal.SIGUSR2)  # where somebody handles them
GRACE_S = 5.0  # that a signal leaves a step to end in


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are either whole or absent, also after a power cut."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` beside ``path``, flush it and rename it."""
        whole = io.BytesIO()  # PyTorch's own writer hides what a disk says, that it is full
        torch.save(checkpoint, whole)
        with replacing(Path(path), "wb") as stream:
            stream.write(whole.getbuffer())


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Return a checkpoint that this run has written; raises ValueError where it is damaged."""
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        return {"global_step": checkpoint["global_step"], **checkpoint}
    except OSError:
        raise
    except Exception as error:  # a damaged archive can provoke anything
        remedy = "remove last.ckpt and best.ckpt, and the same command begins the run anew"
        raise ValueError(f"{file}: expected a whole checkpoint, got {one_line(error)[:200]}; {remedy}") from error


class Best(Checkpoint):
    """Keep the weights of the best validation in ``best.ckpt``.

    Args:
        dirpath: the run's folder.
        monitor: the validation score that decides.
        mode: whether a low (``min``) or a high (``max``) one is good.
    """

    def __init__(self, dirpath: str, monitor: str = "validation/loss", mode: str = "min") -> None:
        require(mode in ("min", "max"), "callbacks.best.mode", "min or max", mode)
        self.file, self.monitor, self.sign = Path(dirpath) / "best.ckpt", monitor, 1 if mode == "min" else -1
        self.score: float | None = None  # by which it is the best
        self.loss: float | None = None  # its validation loss, whatever the monitor

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a score that no validation will have; one task tells which there are."""
        if self.monitor != "validation/loss":
            known = pl_module.validation_scores(trainer.datamodule)  # type: ignore[operator, attr-defined]
            require(self.monitor in known, "callbacks.best.monitor", f"one of {', '.join(known)}", self.monitor)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this validation is the best so far; a NaN is the worst."""
        scores = trainer.callback_metrics
        score = float(scores[self.monitor])
        score = score if score == score else self.sign * inf
        if self.least is None or self.sign * score < self.least:
            loss = float(scores["validation/loss"])
            self.score, self.loss = score, loss if loss == loss else inf
            trainer.save_checkpoint(self.file)

    @property
    def least(self) -> float | None:
        """The best score as what is to be small: with its sign changed where a high one is good."""
        return None if self.score is None else self.sign * self.score

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and its loss, for a run that goes on."""
        return {"score": self.score, "loss": self.loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up those of an earlier part of this run."""
        self.score = state_dict["score"]
        self.loss = state_dict.get("loss", self.score)  # of an earlier version, whose score was mostly that


class Last(Checkpoint):
    """Keep ``last.ckpt``: every so many steps, every so many minutes, and when the process is asked to end.

    Args:
        dirpath: the run's folder.
        every_n_steps: steps between two checkpoints; null for no such limit.
        every_minutes: minutes between two checkpoints; null for no such limit.
    """

    def __init__(self, dirpath: str, every_n_steps: int | None = None, every_minutes: float | None = 1.0) -> None:
        steps, minutes = every_n_steps, every_minutes
        require(steps is None or steps >= 1, "callbacks.last.every_n_steps", "null or at least 1", steps)
        require(minutes is None or minutes >= 0, "callbacks.last.every_minutes", "null or at least 0", minutes)
        require_at_most(MINUTES, "callbacks.last.every_minutes", minutes or 0.0)
        self.file, self.every_n_steps = Path(dirpath) / "last.ckpt", every_n_steps
        self.interval_s = inf if every_minutes is None else 60.0 * every_minutes
        self.saved_at = 0.0
        self.signals: list[int] = []  # that came since the last step
        self.handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}  # from before the training
        self.training = False
        self.found: dict[int, Any] = {}  # handlers in whose place ours stand during the training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note who handles signals, before Lightning does; Python's own for Ctrl-C would not reach our caller."""
        lightning.warn_of_other_versions()
        for number in HANDED_ON:
            handler = signal.getsignal(number)
            if callable(handler) and handler is not signal.default_int_handler:
                self.handlers[number] = handler

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and heed signals."""
        self.saved_at, self.training = time.monotonic(), True
        if threading.current_thread() is threading.main_thread():
            self.found = {number: signal.signal(number, self._heed) for number in {*SIGNALS, *self.handlers}}
            lightning.forget_signals(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Between two steps: save if it is time, or end if a signal came."""
        step = trainer.global_step
        if batch_idx % trainer.accumulate_grad_batches or not step:
            return
        lightning.set_steps_logged(trainer, step)
        due = time.monotonic() - self.saved_at >= self.interval_s
        signals, self.signals = self.signals, []
        if trainer.world_size > 1:  # all processes save together
            due = bool(trainer.strategy.broadcast(due))
            highest = torch.tensor(max(signals, default=0), device=pl_module.device)
            signals = [number] if (number := int(trainer.strategy.reduce(highest, reduce_op="max"))) else []
        if due or signals or (self.every_n_steps and step % self.every_n_steps == 0):
            trainer.save_checkpoint(self.file)
            self.saved_at = time.monotonic()
        for number in signals:
            log.info("step %d: saved on %s", step, signal.Signals(number).name)
            self._hand_on(number)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint stand between two steps."""
        lightning.leave_out_ready_batch(checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step, and end here if a signal came during it."""
        self.training = False
        trainer.save_checkpoint(self.file)
        for number in self.signals:
            self._hand_on(number)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ask nobody a second time, and heed no more signals."""
        self._put_back()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Heed no more signals: what comes after the training is ended as any program is."""
        self._put_back()

    def _put_back(self) -> None:
        """Put the handlers back that were found, of which the trainer then does so with its own."""
        self.training = False
        for number, handler in self.found.items():
            signal.signal(number, handler)
        self.found = {}

    def _heed(self, number: int, frame: FrameType | None) -> None:
        if number in self.signals:  # asked twice: at once, from the last checkpoint
            self._hand_on(number)
        else:
            self.signals.append(number)
            threading.Thread(target=self._limit_step, args=(number,), daemon=True).start()

    def _limit_step(self, number: int) -> None:
        """Say that a signal came, and ask a second time if the step is not over after GRACE_S."""
        name = signal.Signals(number).name
        log.info("%s came: saving after this step, which has %.0f s", name, GRACE_S)
        time.sleep(GRACE_S)
        if self.training and number in self.signals:
            saved = "last.ckpt stays as it was" if self.file.exists() else "nothing is saved yet"
            log.info("%s: this step takes longer and is not waited for; %s", name, saved)
            os.kill(os.getpid(), number)

    def _hand_on(self, number: int) -> None:
        """Leave to the earlier handler whether the run ends; where there is none, it does."""
        if number not in self.handlers:
            raise SystemExit(128 + number)
        self.handlers[number](number, None)
