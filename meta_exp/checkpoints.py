"""What a run keeps of its training: best.ckpt by validation loss, and last.ckpt, from which it goes on.

A checkpoint stands between two steps, with the validation that was due, and is written under another name, flushed to
the disk and then renamed: whenever a process dies, ``last.ckpt`` is a whole one, and a run continued from it retraces
the steps of an undisturbed one bit by bit. SIGTERM and SIGINT are heeded between two steps: the run is saved there and
ends with exit code 128 + signal.
"""

import logging
import signal
import threading
import time
from math import inf
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from meta_exp.checks import require
from meta_exp.files import replacing

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are either whole or absent, also after a power cut."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` beside ``path``, flush it and rename it."""
        with replacing(Path(path), "wb") as stream:
            torch.save(checkpoint, stream)


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
        self.score: float | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this validation is the best so far; a NaN is the worst."""
        scores = trainer.callback_metrics
        known = ", ".join(name for name in scores if name.startswith("validation/"))
        require(self.monitor in scores, "callbacks.best.monitor", f"one of {known}", self.monitor)
        score = float(scores[self.monitor])
        score = score if score == score else self.sign * inf
        if self.score is None or self.sign * score < self.sign * self.score:
            self.score = score
            trainer.save_checkpoint(self.file)

    def state_dict(self) -> dict[str, Any]:
        """Return the best score, for a run that goes on."""
        return {"score": self.score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score of an earlier part of this run."""
        self.score = state_dict["score"]


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
        self.file, self.every_n_steps = Path(dirpath) / "last.ckpt", every_n_steps
        self.interval_s = inf if every_minutes is None else 60.0 * every_minutes
        self.saved_at = 0.0
        self.signal: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and heed signals; the trainer puts the handlers back that it found."""
        self.saved_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._heed)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Between two steps: save if it is time, or end if a signal came."""
        step = trainer.global_step
        if batch_idx % trainer.accumulate_grad_batches or not step:
            return
        # Lightning counts a step twice if it finds, on continuing, that its validation is done; its loggers go by this
        trainer.fit_loop.epoch_loop._batches_that_stepped = step
        due, number = time.monotonic() - self.saved_at >= self.interval_s, self.signal or 0
        if trainer.world_size > 1:  # all processes save together
            due = bool(trainer.strategy.broadcast(due))
            number = int(trainer.strategy.reduce(torch.tensor(number, device=pl_module.device), reduce_op="max"))
        if due or number or (self.every_n_steps and step % self.every_n_steps == 0):
            trainer.save_checkpoint(self.file)
            self.saved_at = time.monotonic()
        if number:
            log.info("step %d: saved on %s; the same command continues", step, signal.Signals(number).name)
            raise SystemExit(128 + number)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave the batch out that is ready but not begun: Lightning would count it as done."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts["ready"] = counts["completed"]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step, and end here if a signal came during it."""
        trainer.save_checkpoint(self.file)
        if self.signal:
            raise SystemExit(128 + self.signal)

    def _heed(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:  # asked twice: at once, from the last checkpoint
            raise SystemExit(128 + number)
        self.signal = number
