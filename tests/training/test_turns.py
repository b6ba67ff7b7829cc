"""Steps without a turn of Lightning's leave what its own turns leave: weights, counts, checkpoints, what is logged."""

import json
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from torch.utils._pytree import tree_map

from meta_exp.runs.build import build
from meta_exp.training import lightning
from meta_exp.training.history import read_history
from meta_exp.training.meta_gradient import MetaGradient
from meta_exp.training.turns import Turns

QUICK = ["trainer=smoke", "logger=none", "model.widths=[4]", "dataset.meta_batch=2", "validation_tasks=2"]
QUICK += ["trainer.max_steps=17", "trainer.val_check_interval=5", "trainer.log_every_n_steps=4"]


class Batches(Callback):
    """Note the steps at whose start and end it is called."""

    def __init__(self):
        self.calls = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.calls.append(("start", trainer.global_step, batch_idx, float(batch.query.y.sum())))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.calls.append(("end", trainer.global_step, batch_idx, float(outputs["loss"])))
        pl_module.log("own", outputs["loss"], on_step=True)
        self.calls.append(float(trainer.callback_metrics["own"]))


@pytest.fixture
def turns(monkeypatch):
    """Count the turns of Lightning's."""
    taken, whole = [], _TrainingEpochLoop.advance

    def advance(self, data_fetcher):
        taken.append(self.global_step)
        whole(self, data_fetcher)

    monkeypatch.setattr(_TrainingEpochLoop, "advance", advance)
    return taken


def trained(cfg, by_turns, *callbacks):
    """Train a run, with a turn of Lightning's for each step where it is to."""
    run = build(cfg)
    loop = run.trainer.fit_loop.epoch_loop
    assert isinstance(loop, Turns)
    if by_turns:
        run.trainer.fit_loop.epoch_loop = _TrainingEpochLoop(run.trainer, max_steps=loop.max_steps)
    run.trainer.callbacks.extend(callbacks)
    run.recorder.begin({}, Path(cfg.run_dir), 0)
    run.trainer.fit(run.learner, run.stream)
    return run


SETTINGS = {
    "LLAMA with a learned prior": ["algorithm=llama", "curvature.learned=true", "algorithm.prior_term=true"],
    "clipped by norm": ["algorithm=maml", "trainer.gradient_clip_val=0.1"],
    "clipped by value": ["algorithm=maml", "trainer.gradient_clip_val=0.01", "trainer.gradient_clip_algorithm=value"],
    "a schedule": ["algorithm=maml", "lr_schedule=cosine"],
    "noise": ["algorithm=abml"],
    "plain descent": ["algorithm=maml", "optimizer=sgd"],
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_all_is_as_lightning_leaves_it(config, turns, settings):
    seen = {}
    for by_turns in (True, False):
        cfg, batches = config(*QUICK, *settings), Batches()
        turns.clear()
        trained(cfg, by_turns, batches)
        assert turns == (list(range(17)) if by_turns else [3, 4, 7, 9, 11, 14, 15, 16])
        folder = Path(cfg.run_dir)
        checkpoint = torch.load(folder / "last.ckpt", weights_only=False)
        seen[by_turns] = batches.calls, checkpoint, read_history(folder / "history.jsonl")
    (calls, checkpoint, rows), (their_calls, theirs, their_rows) = seen[False], seen[True]
    assert calls == their_calls
    assert rows == their_rows
    assert len(rows) > 3
    assert checkpoint["loops"] == theirs["loops"]
    assert checkpoint["lr_schedulers"] == theirs["lr_schedulers"]
    for name, value in theirs["state_dict"].items():
        assert torch.equal(checkpoint["state_dict"][name], value), name
    torch.testing.assert_close(checkpoint["optimizer_states"], theirs["optimizer_states"], rtol=0, atol=0)


@pytest.mark.parametrize("by_turns", [True, False])
def test_weights_move_by_their_own_gradients_whatever_these_order_in_memory(config, monkeypatch, by_turns):
    """Compiled convolutions have another; a fused optimiser pairs the two by their places there."""
    whole, weights = MetaGradient._eager, []

    def elsewhere(self, *arguments):
        return tree_map(lambda value: value.mT.contiguous().mT if value.ndim > 1 else value, whole(self, *arguments))

    for take in (whole, elsewhere):
        monkeypatch.setattr(MetaGradient, "_eager", take)
        run = trained(config(*QUICK, "model.widths=[4,4]", "algorithm=meta_sgd"), by_turns)
        weights.append([value.detach() for value in run.learner.parameters()])
    assert all(map(torch.equal, *weights))


class Stops(Callback):
    """Ask for the end at a step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop |= trainer.global_step == 6


def test_a_callback_that_asks_for_the_end(config):
    ends = []
    for by_turns in (True, False):
        cfg, batches = config(*QUICK, "algorithm=maml"), Batches()
        run = trained(cfg, by_turns, Stops(), batches)
        lines = (Path(cfg.run_dir) / "history.jsonl").read_text().splitlines()  # NaN is NaN there
        ends.append((run.trainer.global_step, batches.calls, lines))
    assert ends[0] == ends[1]
    assert ends[0][0] == 6
    assert json.loads(ends[0][2][-1])["step"] == 6


class Gradients(Callback):
    """Listen within a step, which only Lightning calls to."""

    def __init__(self):
        self.norms = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.norms.append(float(sum(p.grad.norm() for p in pl_module.model.parameters())))


@pytest.mark.parametrize(
    ("settings", "callbacks"),
    [
        ([], [Gradients]),
        (["trainer.accumulate_grad_batches=2"], []),
        (["trainer.log_every_n_steps=1"], []),
    ],
    ids=["heard within a step", "accumulated", "each step logged"],
)
def test_where_a_step_is_more_than_a_step_each_is_a_turn(config, turns, settings, callbacks):
    made = [callback() for callback in callbacks]
    run = trained(config(*QUICK, "algorithm=maml", *settings), False, *made)
    assert len(turns) == 17 * run.trainer.accumulate_grad_batches
    assert all(len(callback.norms) == 17 for callback in made)


def test_another_version_of_lightning_takes_turns(config, monkeypatch):
    monkeypatch.setattr(lightning, "KNOWN", "2.5")
    run = build(config(*QUICK, "algorithm=maml"))
    assert type(run.trainer.fit_loop.epoch_loop) is _TrainingEpochLoop
