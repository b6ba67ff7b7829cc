"""What a task is scored by: the metric after each step of adaptation, and each predictive's metric and NLL per point.

The NLL is that of the averaged predictive (log of the mean over draws), never the mean of the draws' NLLs.
"""

from collections.abc import Sequence

from torch import Tensor

from meta_exp.adaptation import Params
from meta_exp.algorithms import MAML
from meta_exp.curvature import Noise
from meta_exp.likelihood import Hyper
from meta_exp.prediction import predict
from meta_exp.tasks.episode import Episode


def evaluate(
    algorithm: MAML,
    theta: Params,
    hyper: Hyper,
    episode: Episode,
    noise: Noise | None,
    *,
    steps: int,
    predictives: Sequence[str],
) -> dict[str, Tensor]:
    """Adapt one task by ``steps`` steps and score its query set.

    Returns:
        Scalars: ``loss`` (mean over query points, as in the inner loop), ``map/<metric>_step_<k>`` for k = 0 .. steps,
        for each predictive ``<predictive>/<metric>`` and ``<predictive>/nll``; ``log_det`` and the
        posterior's diagnostics where there is curvature.
    """
    likelihood = algorithm.likelihood.at(hyper)
    support, query = episode
    path = algorithm.adapt(theta, support, steps)
    outputs = [algorithm.predict(params, query.x) for params in path]
    scores = {"loss": likelihood.loss(outputs[-1], query.y)}
    for k, output in enumerate(outputs):
        scores[f"map/{likelihood.metric}_step_{k}"] = likelihood.score(output[None], query.y).mean()
    posterior = algorithm.posterior(path[-1], support, hyper)
    if posterior is not None:
        scores["log_det"] = posterior.log_det_ratio().to(scores["loss"].dtype)
        scores |= posterior.diagnostics()
    for kind in predictives:
        prediction = predict(kind, algorithm.predict, path[-1], query.x, likelihood, posterior, noise)
        scores[f"{kind}/{likelihood.metric}"] = likelihood.score(prediction.outputs, query.y).mean()
        scores[f"{kind}/nll"] = -likelihood.log_predictive(*prediction, query.y).mean()
    return scores
