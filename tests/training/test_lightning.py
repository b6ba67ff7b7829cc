"""The installed Lightning is one whose insides are known, and has in them what is set there."""

import pytest
import torch
from pytorch_lightning import Callback, Trainer

from meta_exp.runs.build import build
from meta_exp.training import lightning

QUICK = ["trainer=smoke", "logger=none", "model.widths=[4]", "dataset.meta_batch=2", "validation_tasks=2"]


def test_other_versions_are_told_of_in_one_line(caplog):
    lightning.warn_of_other_versions()
    lightning.warn_of_other_versions("2.6.0")
    assert caplog.records == []
    for version in ("2.7.0", "2.60.1", "3.0.0rc1", "2.5.5"):
        caplog.clear()
        lightning.warn_of_other_versions(version)
        assert [record.getMessage() for record in caplog.records] == [
            f"pytorch-lightning: expected version 2.6, got {version}; "
            "a run that is interrupted may go on to other weights"
        ]


def test_what_is_set_is_there(tmp_path):
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", default_root_dir=tmp_path)
    trainer._signal_connector.received_sigterm = True
    assert trainer.received_sigterm  # what the loop asks at the end of a step
    lightning.forget_signals(trainer)
    assert not trainer.received_sigterm
    loop = trainer.fit_loop.epoch_loop
    assert loop._batches_that_stepped == 0
    lightning.set_steps_logged(trainer, 7)
    assert loop.on_save_checkpoint()["_batches_that_stepped"] == 7


@pytest.mark.parametrize("step", [1, 3])
def test_a_checkpoint_stands_between_two_steps(config, step):
    """Before the next batch begins, none is ready that is not done."""
    cfg = config(*QUICK, f"callbacks.last.every_n_steps={step}")
    run = build(cfg)
    raw = []

    class Look(Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            raw.append(dict(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]))

    run.trainer.callbacks.insert(0, Look())
    run.trainer.fit(run.learner, run.stream)
    assert any(counts["ready"] == counts["completed"] + 1 for counts in raw)  # what Lightning says by itself
    saved = torch.load(f"{cfg.run_dir}/last.ckpt", weights_only=True)["loops"]["fit_loop"]
    assert saved["epoch_loop.batch_progress"]["total"]["ready"] == 4
