"""What a task is scored by: the metric after each step of adaptation, and each predictive's scores and histograms.

The NLL is that of the averaged predictive (log of the mean over draws), never the mean of the draws' NLLs.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from meta_exp.adaptation import Meta, Noise, adapt, path
from meta_exp.algorithms import Algorithm
from meta_exp.config.checks import require
from meta_exp.hyper import Hyper
from meta_exp.likelihoods.predictive import ClassPredictive, Predictive
from meta_exp.scoring import metrics
from meta_exp.scoring.conformal import Conformal
from meta_exp.tasks.episode import Episode
from meta_exp.tasks.foreign import Foreign, beyond_support

Predict = Callable[[Tensor], Predictive]  # at inputs x [M, *features] of one task
Score = Callable[[Predictive, Tensor], Tensor]  # of a task's predictive and targets [M]; a scalar


class Scores(NamedTuple):
    """``each``: a scalar a task, [T] for T tasks; ``pooled``: histograms that are added up over tasks."""

    each: dict[str, Tensor]
    pooled: dict[str, Tensor]


def evaluate(
    algorithm: Algorithm,
    meta: Meta,
    episode: Episode,
    draws: Noise = None,
    foreign: Foreign | None = None,
    *,
    steps: int,
    predictives: Sequence[str],
    served: Mapping[str, Hyper] | None = None,
    own: Mapping[str, Score] | None = None,
    conformal: Mapping[str, Conformal] | None = None,
    of_objective: bool = False,
    scored: Collection[int] | None = None,
) -> Scores:
    """Adapt one task by ``steps`` steps and score its query set.

    ``served`` holds the values that a predictive was calibrated to, in place of those of ``meta``; its scores as
    trained are then there too, with ``_raw`` behind their names. ``conformal`` holds the thresholds of a predictive,
    whose coverage and width or set size are then scored. Classes need ``foreign`` images for the AUROC of telling them
    from the task's own; without them it is left out. ``own`` are further scores of predictives, by name. The curvature
    is that of the support set, which is all that a new task has; ``of_objective`` takes the data of the objective.
    ``scored`` are the steps of the path after which the map is scored too, each with a pass over the query set; None
    for all, and the start.

    Returns:
        Each: ``loss`` (mean over query points, as in the inner loop), ``map/<metric>_step_<k>`` for the scored k,
        ``<predictive>/<score>`` with the predictive's own scores and ``auroc``; where there is curvature ``log_det``,
        its floor in a network that has collapsed, and the posterior's diagnostics. Pooled:
        ``<predictive>/<histogram>``, with the predictive's own and, for ``foreign`` images, ``entropy`` [2, 20]: points
        of the task and foreign ones by entropy.
    """
    likelihood = algorithm.likelihood.at(meta.hyper)
    support, query = episode
    each = {}
    for k, params in enumerate(path(algorithm, support, meta, steps)):  # one state at a time: K of them take memory
        asked = scored is None or k in scored
        if asked or k == steps:
            prediction = algorithm.predict("map", params, query.x, meta)
        if asked:
            each[f"map/{likelihood.metric}_step_{k}"] = likelihood.predictive(*prediction).score(query.y).mean()
    loss = torch.stack([likelihood.loss(output, query.y) for output in prediction.outputs]).mean()
    each = {"loss": loss} | each
    curved = algorithm.curved(episode) if of_objective else support
    posterior = algorithm.posterior(params, curved, meta)
    if posterior is not None and posterior.at_mode:
        [output] = algorithm.predict("map", params, query.x, meta, posterior).outputs
        each["loss"] = likelihood.loss(output, query.y)
    if posterior is not None:
        assert algorithm.curvature is not None
        floor = algorithm.curvature.log_det_floor(algorithm.network(params, curved.x), likelihood, meta.hyper)
        each["log_det"] = posterior.log_det_ratio().to(each["loss"].dtype)
        each["log_det_floor"] = floor.to(each["loss"].dtype)
        undefined = each["log_det"].isnan()
        each |= {name: value.masked_fill(undefined, torch.nan) for name, value in posterior.diagnostics().items()}

    def predictive_of(kind: str, here: Meta) -> Predict:
        """Return what predicts at x with the values of ``here``."""
        end, around = params, posterior
        if here is not meta:
            end = adapt(algorithm, support, here, steps) if algorithm.steps_by_hyper else params
            around = algorithm.posterior(end, support, here)
        given = algorithm.likelihood.at(here.hyper)
        known = kind == "map" and end is params and (around is None or not around.at_mode)

        def at(x: Tensor) -> Predictive:
            found = prediction if known and x is query.x else algorithm.predict(kind, end, x, here, around, draws)
            return given.predictive(*found)

        return at

    pooled: dict[str, Tensor] = {}
    for kind in predictives:
        here = meta
        if served and kind in served:
            raw = scores_as_trained(kind, predictive_of(kind, meta), episode, own)
            each, pooled = each | raw.each, pooled | raw.pooled
            here = meta._replace(hyper=meta.hyper | served[kind])
        thresholds = conformal.get(kind) if conformal else None
        found = scores_of(kind, predictive_of(kind, here), episode, foreign, own, thresholds)
        each, pooled = each | found.each, pooled | found.pooled
    return Scores(each, pooled)


def scores_of(
    kind: str,
    predict: Predict,
    episode: Episode,
    foreign: Foreign | None = None,
    own: Mapping[str, Score] | None = None,
    conformal: Conformal | None = None,
) -> Scores:
    """Score what predicts at x, for one task, as the predictive ``kind``; see ``evaluate``."""
    query = episode.query
    predictive = predict(query.x)
    scores, histograms = _scores(predictive, query.y, own), predictive.histograms(query.y)
    doubt = predictive.uncertainty()
    if not isinstance(predictive, ClassPredictive):
        scores["auroc"] = metrics.auroc(doubt, beyond_support(episode))
    elif foreign is not None:
        detection = metrics.foreign_detection(doubt, predict(foreign.x).uncertainty(), foreign.foreign)
        scores["auroc"], histograms["entropy"] = detection
    if conformal:
        scores |= conformal.scores(predictive, query.y)
    return Scores(*({f"{kind}/{name}": value for name, value in found.items()} for found in (scores, histograms)))


def scores_as_trained(kind: str, predict: Predict, episode: Episode, own: Mapping[str, Score] | None = None) -> Scores:
    """Score what predicts without the values that were fitted, with ``_raw`` behind the scores' names."""
    predictive, y = predict(episode.query.x), episode.query.y
    parts = _scores(predictive, y, own), predictive.histograms(y)
    return Scores(*({f"{kind}/{name}_raw": value for name, value in found.items()} for found in parts))


def _scores(predictive: Predictive, y: Tensor, own: Mapping[str, Score] | None) -> dict[str, Tensor]:
    """Return the predictive's own scores and those of ``own``."""
    scores = predictive.scores(y)
    for name, score in (own or {}).items():
        require(name not in scores and name != "auroc", f"scores.{name}", "a name of its own", "one that is taken")
        value = score(predictive, y)
        scalar = isinstance(value, Tensor) and value.ndim == 0
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        require(scalar, f"scores.{name}", "a tensor without dimensions, for a task", got)
        scores[name] = value
    return scores
