r"""The yardstick: what the best possible predictor scores on a task, and how far from it a learner is.

    regret = NLL of what is served - NLL of the family's exact posterior predictive, nats a point, task by task

On average over tasks no predictor that sees the support alone has a lower NLL than p(y | x, S) of the family that drew
them, so that the mean regret is never negative: it is the mean KL divergence of what is served from it.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

from torch import Tensor

from meta_exp.likelihoods.predictive import NumberPredictive, Predictive
from meta_exp.scoring.optimal import optimal_predictive
from meta_exp.scoring.task import Scores
from meta_exp.tasks.episode import Episode, Examples
from meta_exp.tasks.functions.base import CurveTasks
from meta_exp.tasks.stream import TaskFamily

BAYES = "bayes"  # stands among the predictives
Optimal = Callable[[Examples, Tensor], Predictive]


@runtime_checkable
class Solved(Protocol):
    """A family that brings its exact posterior predictive itself."""

    def optimal(self) -> Optimal | None:
        """Return what gives p(y | x, S) for one task's support and inputs x [M, ...], or None where nothing does."""


def yardstick(family: TaskFamily) -> Optimal | None:
    """Return the exact predictor of ``family``: its own, or the integral over its ``prior()``, or None.

    Without noise there is no density, and a family that draws otherwise than y = f(x) + noise has another one.
    """
    if isinstance(family, Solved):
        return family.optimal()
    if not isinstance(family, CurveTasks) or type(family).draw is not CurveTasks.draw:
        return None
    return partial(optimal_predictive, family) if family.prior() is not None and family.noise > 0 else None


def score(optimal: Optimal, episode: Episode) -> Scores:
    """Score the exact predictor on one task: its metric, nll and coverage, and the histograms of its kind of target."""
    support, (x, y) = episode
    predictive = optimal(support, x)
    each = {predictive.metric: predictive.score(y).mean(), "nll": -predictive.log_prob(y).mean()}
    if isinstance(predictive, NumberPredictive):  # without the CRPS, which takes as long as all the others
        each |= predictive.coverage(y)
    each, pooled = (
        {f"{BAYES}/{name}": value for name, value in found.items()} for found in (each, predictive.histograms(y))
    )
    return Scores(each, pooled)


def with_regret(scores: Scores, best: Scores) -> Scores:
    """Return the scores of T tasks with those of the exact predictor, and each predictive's ``regret``."""
    nlls = {name.removesuffix("/nll"): value for name, value in scores.each.items() if name.endswith("/nll")}
    regret = {f"{kind}/regret": nll - best.each[f"{BAYES}/nll"] for kind, nll in nlls.items()}
    return Scores(scores.each | regret | best.each, scores.pooled | best.pooled)
