"""Lightning's turns around training steps, and the steps that need none.

A turn of Lightning's loop calls every hook that there may be, by name, and takes several times as long as the step of a
small network. Most steps are plain ones: one process, nothing accumulated, nothing logged, nothing validated, and
nobody listening but by ``on_train_batch_start`` and ``on_train_batch_end``. They are taken one after another here, by
the same operations in the same order, and counted where Lightning counts. All other steps are Lightning's own, so that
callbacks, loggers, checkpoints and weights are the same, bit by bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.loops.fetchers import _DataFetcher
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor

Hook = Callable[..., None]
STEP = ["on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"]
START, END = "on_train_batch_start", "on_train_batch_end"
MODULE = [*STEP, START, END]
MODULE += ["optimizer_step", "optimizer_zero_grad", "backward", "configure_gradient_clipping", "lr_scheduler_step"]
MODULE += ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"]


class Turns(_TrainingEpochLoop):
    """Lightning's loop over batches, which takes plain steps without a turn of its own."""

    plain: bool  # whether there may be plain steps in this training
    starts: list[Hook]
    ends: list[Hook]

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Look whether anybody listens to more than starts and ends of steps."""
        super().on_run_start(data_fetcher)
        trainer, module = self.trainer, self.trainer.lightning_module
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self.starts, self.ends = (
            [getattr(callback, hook) for callback in callbacks if _overrides(callback, Callback, hook)]
            for hook in (START, END)
        )
        heard = any(_overrides(callback, Callback, hook) for callback in callbacks for hook in STEP)
        heard |= any(_overrides(module, LightningModule, hook) for hook in MODULE)
        by_steps = trainer._val_check_time_interval is None  # type: ignore[attr-defined]
        alone = type(trainer.strategy) is SingleDeviceStrategy and type(trainer.precision_plugin) is Precision
        unwatched = type(trainer.profiler) is PassThroughProfiler  # type: ignore[attr-defined]
        self.plain = by_steps and alone and unwatched and not heard and trainer.accumulate_grad_batches == 1

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Take steps, up to the next one that is more than a step, and that one by a turn of Lightning's."""
        trainer = self.trainer
        while not self.restarting and self._next_is_plain(data_fetcher):
            self._take(data_fetcher)
            if trainer.should_stop or trainer.received_sigterm:
                trainer._logger_connector.on_batch_end()
                trainer._logger_connector.update_train_step_metrics()
                return  # to what Lightning does between two steps
            self._batches_that_stepped += 1
        super().advance(data_fetcher)

    def _next_is_plain(self, data_fetcher: _DataFetcher) -> bool:
        trainer, done = self.trainer, self.global_step + 1
        logs = (self._batches_that_stepped + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        logs |= done % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        validates = (self.batch_progress.total.ready + 1) % trainer.val_check_batch == 0  # type: ignore[operator]
        return self.plain and not logs and not validates and done < self.max_steps and not data_fetcher.done

    def _take(self, data_fetcher: _DataFetcher) -> None:
        """Take one step as ``_TrainingEpochLoop.advance`` and what it calls do."""
        trainer, module = self.trainer, self.trainer.lightning_module
        batch, _, _ = next(data_fetcher)
        batch_idx = self.batch_idx + 1
        if trainer.strategy.root_device.type != "cpu":
            batch = module.transfer_batch_to_device(batch, trainer.strategy.root_device, 0)
        counts, steps = self.batch_progress, self.automatic_optimization.optim_progress.optimizer
        counts.is_last_batch = data_fetcher.done
        counts.increment_ready()
        trainer._logger_connector.on_batch_start(batch)
        self._call(self.starts, START, batch, batch_idx)
        counts.increment_started()
        optimizer = trainer.optimizers[0]
        objective = torch.empty(0)

        @torch.enable_grad()
        def closure() -> Tensor:
            nonlocal objective
            objective = module.take_gradient(batch, batch_idx)  # type: ignore[operator]
            steps.zero_grad.increment_ready()
            steps.zero_grad.increment_started()
            steps.zero_grad.increment_completed()
            if trainer.gradient_clip_val is not None:
                module.clip_gradients(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
            return objective

        steps.step.increment_ready()
        optimizer.step(closure)  # type: ignore[arg-type]
        steps.step.increment_completed()
        counts.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        self._call(self.ends, END, {"loss": objective}, batch, batch_idx)
        counts.increment_completed()

    def _call(self, hooks: list[Hook], name: str, *arguments: Any) -> None:
        trainer, module = self.trainer, self.trainer.lightning_module
        vars(module)["_current_fx_name"] = name  # by which ``log`` knows who calls
        for hook in hooks:
            hook(trainer, module, *arguments)
        vars(module)["_current_fx_name"] = None


def _overrides(instance: Any, base: type, hook: str) -> bool:
    return getattr(type(instance), hook) is not getattr(base, hook) or hook in vars(instance)
