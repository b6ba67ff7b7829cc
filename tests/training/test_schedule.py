"""The schedule of the learning rates: its values, and what a run makes of it; test_folder continues one."""

import pytest
import torch
from pytorch_lightning import Callback

from meta_exp.runs.build import build
from meta_exp.training import Cosine

TINY = ["trainer=smoke", "logger=none", "model.widths=[8,8]", "dataset.meta_batch=2", "algorithm=maml"]


def test_it_is_pytorchs_cosine():
    """Without a warm-up, and from the end of one on."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=0.1)
    ours = Cosine(final=0.1)
    later = Cosine(final=0.1, warmup=5)
    for k in range(21):
        assert ours.factor(k, 20) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        assert later.factor(k + 5, 25) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_warm_up_rises_in_equal_parts():
    assert [Cosine(warmup=3, final=1.0).factor(k, 10) for k in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert Cosine(warmup=10).factor(3, 5) == pytest.approx(4 / 11), "a run shorter than its warm-up"


@pytest.mark.parametrize(
    ("values", "words"), [({"warmup": -1}, "warmup: expected"), ({"final": 1.5}, "final: expected")]
)
def test_refusals(values, words):
    with pytest.raises(ValueError, match=rf"lr_schedule\.{words}"):
        Cosine(**values)


def test_both_rates_fall_in_a_run(config):
    """That of theta and that of the values learned beside it, once a step of the optimizer."""
    overrides = ["lr_schedule=cosine", "hyper_lr=0.1", "likelihood.learned=true", "trainer.max_steps=4"]
    run = build(config(*TINY, *overrides, "trainer.accumulate_grad_batches=2"))
    rates = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    run.trainer.callbacks.insert(0, Watch())
    run.trainer.fit(run.learner, run.stream)
    factors = [Cosine().factor(k // 2, 4) for k in range(8)]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor([[0.001 * f, 0.1 * f] for f in factors]))


def test_without_one_rates_are_constant(config):
    run = build(config(*TINY))
    assert run.learner.schedule is None
    assert isinstance(run.learner.configure_optimizers(), torch.optim.Adam)


def test_a_saved_config_may_name_it(config):
    cfg = config(*TINY, "lr_schedule=cosine", "lr_schedule.warmup=2")
    assert build(cfg).learner.schedule == Cosine(warmup=2)
    with pytest.raises(ValueError, match=r"lr_schedule\.final: expected"):
        build(config(*TINY, "lr_schedule=cosine", "lr_schedule.final=2"))
    with pytest.raises(ValueError, match=r"lr_schedule\.warm: expected a known key"):
        build(config(*TINY, "lr_schedule=cosine", "+lr_schedule.warm=2"))
