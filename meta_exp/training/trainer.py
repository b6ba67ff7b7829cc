"""Lightning's Trainer with the settings that a meta-training has, and those that are the same in each.

Its own constructor takes forty settings, of which some have no meaning here (epochs: meta-batches have no end) and some
would end a run without its result (``fast_dev_run``).
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

import pytorch_lightning
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger

from meta_exp.config.checks import one_line, require, require_at_most
from meta_exp.training import lightning

STEPS = 10**9
ACCUMULATED = 10**4
DEVICES = 10**4  # of a run, whatever the cluster


class Trainer(pytorch_lightning.Trainer):
    """The loop over meta-batches.

    Args:
        max_steps: of the optimizer.
        callbacks: what is called at its events.
        logger: what it logs to.
        plugins: as Lightning takes them.
        accelerator: auto, cpu, gpu, or another that Lightning knows.
        devices: how many, or which by their numbers; -1 or auto for all.
        strategy: ddp for several processes on one meta-batch.
        precision: of the weights; no other is known to keep second derivatives and log dets.
        val_check_interval: steps between two validations.
        log_every_n_steps: steps between two rows of the log.
        gradient_clip_val: where the meta-gradient is clipped; None for not.
        gradient_clip_algorithm: by its norm, or each value; None for the norm.
        accumulate_grad_batches: meta-batches a step.
    """

    def __init__(
        self,
        *,
        max_steps: int,
        callbacks: Sequence[Callback] = (),
        logger: Logger | None = None,
        plugins: Sequence[Any] = (),
        accelerator: str = "auto",
        devices: int | str | list[int] = 1,
        strategy: Literal["auto", "ddp"] = "auto",
        precision: str = "32-true",
        val_check_interval: int = 500,
        log_every_n_steps: int = 50,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] | None = None,
        accumulate_grad_batches: int = 1,
    ) -> None:
        counts = {"max_steps": max_steps, "val_check_interval": val_check_interval}
        for name, value in {**counts, "log_every_n_steps": log_every_n_steps}.items():
            require(value >= 1, f"trainer.{name}", "an integer, at least 1", value)
            require_at_most(STEPS, f"trainer.{name}", value)
        key = "trainer.accumulate_grad_batches"
        require(accumulate_grad_batches >= 1, key, "an integer, at least 1", accumulate_grad_batches)
        require_at_most(ACCUMULATED, key, accumulate_grad_batches)
        clips = gradient_clip_val is None or gradient_clip_val > 0
        require(clips, "trainer.gradient_clip_val", "null or a number > 0", gradient_clip_val)
        remedy = "matmul_precision=high or medium computes faster"
        require(precision in ("32-true", "32"), "trainer.precision", "32-true", precision, remedy)
        require(_known(devices), "trainer.devices", "how many, or a list of their numbers", devices)
        try:
            super().__init__(
                max_steps=max_steps,
                callbacks=list(callbacks),
                logger=logger,
                plugins=list(plugins),
                accelerator=accelerator,
                devices=devices,
                strategy=strategy,
                precision="32-true",
                val_check_interval=min(val_check_interval, max_steps),
                log_every_n_steps=log_every_n_steps,
                gradient_clip_val=gradient_clip_val,
                gradient_clip_algorithm=gradient_clip_algorithm,
                accumulate_grad_batches=accumulate_grad_batches,
                check_val_every_n_epoch=None,
                num_sanity_val_steps=0,
                inference_mode=False,  # adaptation differentiates in evaluation too
                enable_progress_bar=False,  # ours stands in callbacks
                enable_model_summary=False,
            )
        except (MisconfigurationException, TypeError, ValueError) as error:
            said = one_line(error)
            of_devices = "device" in said or "requested" in said
            key = f"trainer.devices={devices}" if of_devices else f"trainer.accelerator={accelerator}"
            raise ValueError(f"{key}: {said}") from error
        if lightning.known():
            from meta_exp.training.turns import Turns  # another version may lack what it imports

            self.fit_loop.epoch_loop = Turns(self, max_steps=max_steps)


def _known(devices: int | str | list[int]) -> bool:
    if isinstance(devices, str):
        return devices == "auto" or re.fullmatch(r"-1|[1-9]\d*|\d+(,\d+)+", devices) is not None
    if isinstance(devices, list):
        return bool(devices) and len(set(devices)) == len(devices) and min(devices) >= 0
    return devices == -1 or 1 <= devices <= DEVICES
