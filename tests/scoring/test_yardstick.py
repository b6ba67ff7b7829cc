"""Which families have an exact predictor, that it is nominal, and what a learner lacks beside it."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from counts import CountTasks
from oracles import assert_equal
from torch.func import vmap

from meta_exp.likelihoods.gaussian import NormalMixture
from meta_exp.likelihoods.predictive import COVERAGE_LEVELS
from meta_exp.runs.build import build
from meta_exp.runs.test_set import score_tasks, summarize
from meta_exp.scoring.task import Scores
from meta_exp.scoring.yardstick import score, with_regret, yardstick
from meta_exp.tasks import Harmonic, Linear, MiniImagenet, Sinusoid, Step
from meta_exp.tasks.functions.base import CurveTasks
from meta_exp.tasks.stream import draw_tasks


@dataclass(frozen=True)
class Smooth(CurveTasks):
    """Draws of a Gaussian process, in a file of a user's: no quadrature, a closed form of its own."""

    def curves(self, rng, tasks):
        frequency, phase = rng.standard_normal((tasks, 1, 200)), rng.uniform(0, 2 * np.pi, (tasks, 1, 200))
        weight = rng.standard_normal((tasks, 1, 200)) / 10
        return lambda x: (weight * np.cos(frequency * x + phase)).sum(-1, keepdims=True)

    def optimal(self):
        def kernel(a, b):
            return (-((a - b.mT) ** 2) / 2).exp()

        def predict(support, x):
            seen, y, x = support.x.double(), support.y.double(), x.double()
            gram = kernel(seen, seen) + self.noise**2 * torch.eye(len(seen)).double()
            gain = torch.linalg.solve(gram, kernel(seen, x)).mT
            variance = 1 + self.noise**2 - (gain * kernel(x, seen)).sum(-1, keepdim=True)
            return NormalMixture((gain @ y)[None], variance[None])

        return predict if self.noise > 0 else None


def nominal(each, tasks):
    """Whether coverage is the level, within four errors: points of a task share its posterior."""
    for q in COVERAGE_LEVELS:
        covered = each[f"bayes/coverage_{q}"].double()
        assert float(covered.mean()) == pytest.approx(q / 100, abs=float(4 * covered.std() / math.sqrt(tasks))), q


@pytest.mark.parametrize("family", [Sinusoid, Linear, Step, Smooth])
def test_families_that_have_one(family):
    """With noise alone; several hundred tasks are covered as the level says."""
    assert yardstick(family()) is None
    family = family(noise=0.3, shots=5, queries=5)
    optimal = yardstick(family)
    each, pooled = vmap(lambda *task: score(optimal, task), chunk_size=100)(*draw_tasks(family, "test", 0, 400))
    assert set(each) == {"bayes/mse", "bayes/nll", *(f"bayes/coverage_{q}" for q in COVERAGE_LEVELS)}
    assert all(value.shape == (400,) for value in each.values())
    assert pooled["bayes/pit"].sum() == 2000
    nominal(each, 400)


def test_families_that_have_none():
    """Counts are drawn from a sinusoid, but not as y = f(x) + noise."""
    for family in (Harmonic(noise=0.3), CountTasks(noise=0.3), MiniImagenet("x")):
        assert yardstick(family) is None


def test_regret_is_paired_by_task():
    best = Scores({"bayes/nll": torch.tensor([1.0, 2.0])}, {"bayes/pit": torch.ones(20)})
    served = {"loss": torch.ones(2), "map/nll": torch.tensor([1.5, 4.0]), "map/nll_raw": torch.tensor([9.0, 9.0])}
    found = with_regret(Scores(served, {"map/pit": torch.ones(20)}), best)
    assert set(found.each) == {*served, "map/regret", "bayes/nll"}
    assert_equal(found.each["map/regret"], torch.tensor([0.5, 2.0]))
    assert set(found.pooled) == {"map/pit", "bayes/pit"}


def test_every_predictive_of_a_run_is_measured(config):
    """On average none is better than the exact one, whose coverage is nominal in the run's own scores."""
    quick = ["trainer=smoke", "logger=none", "model.widths=[8,8]", "samples=3", "predictives=[map,linearized,sample]"]
    run = build(config(*quick, "dataset.noise=0.3", "evaluation_steps=1"))
    scores = score_tasks(run.learner, run.family, 300, torch.device("cpu"))
    nominal(scores.each, 300)
    summary = summarize(scores)
    for kind in ("map", "linearized", "sample"):
        lacks = summary[f"test/{kind}/nll"] - summary["test/bayes/nll"]
        assert summary[f"test/{kind}/regret"] == pytest.approx(lacks, abs=1e-5)
        assert summary[f"test/{kind}/regret"] > summary[f"test/{kind}/regret_ci95"] > 0
    assert summary["test/bayes/mse"] == pytest.approx(0.11, abs=0.02)
    assert summary["test/bayes/nll"] == pytest.approx(0.322, abs=0.1)
    assert not [name for name in summarize(score_plain(config, quick)) if "bayes" in name or "regret" in name]


def score_plain(config, quick):
    run = build(config(*quick))
    return score_tasks(run.learner, run.family, 10, torch.device("cpu"))
