"""What a task is scored by: the metric after each step of adaptation, and each predictive's scores and histograms.

The NLL is that of the averaged predictive (log of the mean over draws), never the mean of the draws' NLLs.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from meta_exp.adaptation import Params
from meta_exp.algorithms import MAML
from meta_exp.curvature import Noise
from meta_exp.likelihoods import Hyper
from meta_exp.prediction import predict
from meta_exp.scoring import metrics
from meta_exp.tasks.episode import Episode
from meta_exp.tasks.foreign import Foreign, beyond_support


class Scores(NamedTuple):
    """``each``: a scalar a task, [T] for T tasks; ``pooled``: histograms that are added up over tasks."""

    each: dict[str, Tensor]
    pooled: dict[str, Tensor]


def evaluate(
    algorithm: MAML,
    theta: Params,
    hyper: Hyper,
    episode: Episode,
    noise: Noise | None,
    foreign: Foreign | None = None,
    *,
    steps: int,
    predictives: Sequence[str],
) -> Scores:
    """Adapt one task by ``steps`` steps and score its query set.

    Classes need ``foreign`` images for the AUROC of telling them from the task's own; without them it is left out.

    Returns:
        Each: ``loss`` (mean over query points, as in the inner loop), ``map/<metric>_step_<k>`` for k = 0 .. steps,
        ``<predictive>/<score>`` with the predictive's own scores and ``auroc``; where there is curvature ``log_det``,
        its floor in a network that has collapsed, and the posterior's diagnostics. Pooled:
        ``<predictive>/<histogram>``, with the predictive's own and, for ``foreign`` images, ``entropy`` [2, 20]: points
        of the task and foreign ones by entropy.
    """
    likelihood = algorithm.likelihood.at(hyper)
    support, query = episode
    path = algorithm.adapt(theta, support, steps)
    outputs = [algorithm.predict(params, query.x) for params in path]
    each = {"loss": likelihood.loss(outputs[-1], query.y)}
    for k, output in enumerate(outputs):
        each[f"map/{likelihood.metric}_step_{k}"] = likelihood.plug_in(output).score(query.y).mean()
    posterior = algorithm.posterior(path[-1], support, hyper)
    if posterior is not None:
        assert algorithm.curvature is not None
        floor = algorithm.curvature.log_det_floor(algorithm.predict(path[-1], support.x), likelihood, hyper)
        each["log_det"] = posterior.log_det_ratio().to(each["loss"].dtype)
        each["log_det_floor"] = floor.to(each["loss"].dtype)
        each |= posterior.diagnostics()
    pooled: dict[str, Tensor] = {}
    for kind in predictives:
        prediction = predict(kind, algorithm.predict, path[-1], query.x, likelihood, posterior, noise)
        predictive = likelihood.predictive(*prediction)
        scores, histograms = predictive.scores(query.y), predictive.histograms(query.y)
        doubt = predictive.uncertainty()
        if likelihood.targets != "classes":
            scores["auroc"] = metrics.auroc(doubt, beyond_support(episode))
        elif foreign is not None:
            other = predict(kind, algorithm.predict, path[-1], foreign.x, likelihood, posterior, noise)
            other_doubt = likelihood.predictive(*other).uncertainty()
            detection = metrics.foreign_detection(doubt, other_doubt, foreign.foreign)
            scores["auroc"], histograms["entropy"] = detection
        each |= {f"{kind}/{name}": value for name, value in scores.items()}
        pooled |= {f"{kind}/{name}": value for name, value in histograms.items()}
    return Scores(each, pooled)
