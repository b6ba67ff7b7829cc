"""Scores over the test tasks: the same whatever the chunk, intervals over tasks, ECE of the pooled points."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from meta_exp.runs.build import build
from meta_exp.runs.test_set import describe_failed, score_tasks, summarize
from meta_exp.scoring.metrics import failed_tasks
from meta_exp.scoring.task import Scores
from meta_exp.tasks.foreign import draw_with_foreign

TINY = ["trainer=smoke", "logger=none", "model.widths=[8,8]", "predictives=[map,linearized,sample]", "samples=5"]
CPU = torch.device("cpu")


def scores(config, *overrides, tasks=25, **options):
    run = build(config(*TINY, *overrides))
    return score_tasks(run.learner, run.family, tasks, CPU, **options)


def test_scores_do_not_depend_on_the_chunk(config):
    whole, chunked = scores(config, "chunk_size=null"), scores(config, "chunk_size=4")
    assert set(whole.each) >= {"map/mse", "map/crps", "linearized/nll", "sample/auroc", "map/mse_step_0"}
    for name, values in whole.each.items():
        assert values.shape == (25,)
        np.testing.assert_allclose(chunked.each[name], values, rtol=1e-3, atol=1e-6, err_msg=name)
    assert {name: value.sum() for name, value in whole.pooled.items()} == dict.fromkeys(whole.pooled, 250)


def test_same_digits_again_and_for_fewer_tasks(config):
    """Task k is the same whatever the number of tasks, and posterior draws depend on the batch alone."""
    more, again, fewer = scores(config), scores(config), scores(config, tasks=10)
    for name, values in more.each.items():
        assert torch.equal(again.each[name].nan_to_num(), values.nan_to_num()), name
        assert torch.equal(fewer.each[name].nan_to_num(), values[:10].nan_to_num()), name


def test_progress_is_told_in_tasks(config):
    told = []
    scores(config, advance=told.append)
    assert told == [10, 20, 25]


def test_classes_have_calibration_and_foreign_images(config, omniglot_root):
    overrides = ["dataset=omniglot", "curvature=last_layer", "model.filters=4", "dataset.queries=2"]
    run = build(config(*[o for o in TINY if "widths" not in o], *overrides, f"dataset.root={omniglot_root}"))
    scored = score_tasks(run.learner, run.family, 12, CPU)
    summary = summarize(scored)
    for kind in ("map", "linearized", "sample"):
        assert scored.pooled[f"{kind}/reliability"][0].sum() == 12 * 10
        own, foreign = scored.pooled[f"{kind}/entropy"].sum(1)
        assert own == 120
        assert 100 < foreign <= 120
        assert {f"test/{kind}/{name}" for name in ("accuracy", "nll", "brier", "ece", "auroc")} <= set(summary)
        assert 0 < summary[f"test/{kind}/ece"] < 1


def test_interval_is_students():
    values = torch.arange(10.0)
    summary = summarize(Scores({"loss": values, "map/mse": values}, {}))
    assert summary["test/tasks"] == 10
    assert summary["test/map/mse"] == 4.5
    assert summary["test/map/mse_ci95"] == pytest.approx(stats.sem(np.arange(10)) * stats.t(9).ppf(0.975))
    two = summarize(Scores({"loss": values[:2], "map/mse": values[:2]}, {}))
    assert two["test/map/mse_ci95"] == pytest.approx(12.706 * 0.5, rel=1e-4)


def test_only_an_auroc_may_be_undefined():
    """A task without foreign points is left out of the AUROC; any other NaN is a failure that must show."""
    values = torch.tensor([0.5, float("nan"), 1.0])
    summary = summarize(Scores({"loss": values, "map/auroc": values, "map/nll": torch.ones(3)}, {}))
    assert summary["test/map/auroc"] == 0.75
    assert math.isnan(summary["test/loss"])
    nothing_foreign = {"map/auroc": torch.full((3,), float("nan")), "map/nll": torch.ones(3)}
    assert not [name for name in summarize(Scores({"loss": values} | nothing_foreign, {})) if "auroc" in name]
    failed = summarize(Scores({"loss": values, "map/auroc": values, "map/nll": values}, {}))
    assert math.isnan(failed["test/map/auroc"])


@pytest.mark.parametrize("dataset", ["sinusoid", "omniglot"])
def test_tasks_that_fail_are_named_and_score_nothing(config, omniglot_root, dataset, monkeypatch):
    """Weights that are NaN score no accuracy of a guess, no coverage of 0 and no AUROC of 0; which tasks is told."""
    images = [*TINY[:2], *TINY[3:], "model.filters=4", "dataset.queries=2", f"dataset.root={omniglot_root}"]
    run = build(config(*(images if dataset == "omniglot" else TINY), f"dataset={dataset}", "curvature=last_layer"))
    whole = score_tasks(run.learner, run.family, 12, CPU)
    assert failed_tasks(whole.each) == {}

    def spoilt(family, split, start, stop):
        episodes, foreign = draw_with_foreign(family, split, start, stop)
        if start <= 11 < stop:
            episodes.support.x[11 - start] = torch.nan
        return episodes, foreign

    monkeypatch.setattr("meta_exp.runs.test_set.draw_with_foreign", spoilt)
    found = score_tasks(run.learner, run.family, 12, CPU)
    kinds = ("map", "linearized", "sample")
    assert failed_tasks(found.each) == {kind: [11] for kind in kinds}
    for name, values in found.each.items():
        assert name.endswith(("_step_0", "log_det_floor")) or values[11].isnan(), name
        assert torch.equal(values[:11].nan_to_num(), whole.each[name][:11].nan_to_num()), name
    summary, metric = summarize(found), run.learner.algorithm.likelihood.metric
    assert all(math.isnan(summary[f"test/{kind}/{name}"]) for kind in kinds for name in ("nll", metric, "auroc"))
    told = describe_failed(failed_tasks(found.each), 12)
    assert told.startswith(
        "of 12 test tasks some have no prediction, and their means are NaN: map 1 (11); linearized 1"
    )
