r"""An ensemble of runs, the mixture of their predictives: what a posterior of one network has to beat.

    p(y | x, S) = 1/E sum_e p_e(y | x, S)

Each member adapts to the task by itself and predicts as it is served, with the sigma or temperature, and the tau, that
were fitted to it. A mixture is wider than its members, so that what spreads predictions is fitted once more, on the
same validation tasks: one factor on the sigma, or the temperature, of all members; 1 for a single one, and where a
likelihood leaves nothing free. The posterior around each member stays what it is. Scores with ``_raw`` are those of the
mixture as the members were trained.

Members may be of any algorithms, curvatures, networks and numbers of draws. They share the tasks and the likelihood.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import exp, log
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from meta_exp.adaptation import Meta, Noise, Params, adapt
from meta_exp.algorithms import Algorithm
from meta_exp.config.checks import require
from meta_exp.config.keys import KEPT, MEASURED, Keys, within
from meta_exp.curvature import Posterior
from meta_exp.hyper import Hyper
from meta_exp.likelihoods.predictive import Predictive
from meta_exp.prediction import KINDS, Prediction
from meta_exp.scoring.task import Scores, scores_as_trained, scores_of
from meta_exp.tasks.episode import Episode, Examples
from meta_exp.tasks.foreign import Foreign
from meta_exp.training.learner import EVALUATION, Learner

WIDEST = 4.0  # the factor, or its inverse, at most
TOLERANCE = 1e-2  # of its logarithm
Drawn = Sequence[tuple[Noise, Noise]]  # of each member: the noise of a task's path, and of its predictive draws
Predictions = Sequence[Prediction]  # of each member
TRAINED = ("dataset.meta_batch", *KEPT, *MEASURED)  # what members may differ in: how they were trained, where data lies


def refuse_unlike(configs: Mapping[object, Keys]) -> None:
    """Raise ValueError where the runs, whose flat configs stand by their folders, do not share tasks and likelihood."""
    (first, keys), *others = configs.items()
    for folder, other in others:
        for key in dict.fromkeys([*keys, *other]):
            shared = key == "likelihood._target_" or (key.startswith("dataset.") and not within(key, TRAINED))
            same = not shared or keys.get(key) == other.get(key)
            remedy = f"the members of an ensemble share tasks and likelihood; {folder} differs from {first}"
            require(same, f"ensemble=true: {key}", str(keys.get(key)), other.get(key), remedy)


class Ensemble:
    """Members that predict together.

    Args:
        members: learners in evaluation mode, on one device.

    Attributes:
        predictives: those that all members have.
        factors: on the sigma or temperature of every member, by predictive; none where nothing was fitted.
    """

    def __init__(self, members: Sequence[Learner]) -> None:
        self.members = members
        self.predictives = [kind for kind in KINDS if all(kind in member.predictives for member in members)]
        self.factors: dict[str, float] = {}
        got = "; ".join(", ".join(member.predictives) for member in members)
        require(bool(self.predictives), "ensemble=true", "a predictive that all members have", got)

    def evaluate(self, episodes: Episode, seed: int, foreign: Foreign | None = None) -> Scores:
        """Score T tasks; the values have a leading T. A member's draws are those that it is scored with alone."""
        own = self.members[0].scores
        fitted = any(member.served for member in self.members)

        def one(episode: Episode, drawn: Drawn, foreign: Foreign | None) -> Scores:
            each: dict[str, Tensor] = {}
            pooled: dict[str, Tensor] = {}
            for kind in self.predictives:
                if fitted:
                    ends = self._ends(kind, episode.support, drawn, served=False)
                    raw = scores_as_trained(kind, lambda x: self._mixed(kind, ends(x), served=False), episode, own)  # noqa: B023
                    each, pooled = each | raw.each, pooled | raw.pooled
                served = self._ends(kind, episode.support, drawn)
                found = scores_of(kind, lambda x: self._mixed(kind, served(x)), episode, foreign, own)  # noqa: B023
                each, pooled = each | found.each, pooled | found.pooled
            return Scores(each, pooled)

        return self._of_tasks(one, episodes, seed, foreign)

    @torch.no_grad()
    def fit(self, batches: Iterable[Episode]) -> None:
        """Fit the factor of each predictive to the tasks of ``batches``, where that makes their NLL less."""
        if len(self.members) == 1 or not self.members[0].algorithm.likelihood.free():
            return
        held = [tree_map(lambda value: value.to(self.members[0].device), episodes) for episodes in batches]
        for kind in self.predictives:
            found = [self._of_tasks(self._predictions(kind), episodes, k) for k, episodes in enumerate(held)]
            cost = self._nll(kind, found, held)
            bounds, options = (-log(WIDEST), log(WIDEST)), {"xatol": TOLERANCE}
            best = minimize_scalar(cost, bounds=bounds, method="bounded", options=options)
            if best.fun < cost(0.0):
                self.factors[kind] = exp(best.x)

    def _predictions(self, kind: str) -> Callable[..., Predictions]:
        """Return what predicts the query set of one task by each member."""
        return lambda episode, drawn, _: self._ends(kind, episode.support, drawn)(episode.query.x)

    def _nll(self, kind: str, found: Sequence[Predictions], held: Sequence[Episode]) -> Callable[[float], float]:
        """Return what is fitted on batches that members have predicted already, as a function of the log factor."""
        points = sum(batch.query.y.shape[:2].numel() for batch in held)

        def cost(log_factor: float) -> float:
            def nll(predictions: Predictions, y: Tensor) -> Tensor:
                return self._mixed(kind, predictions, log_factor).fitted_nll(y, points)

            each = [vmap(nll)(predictions, batch.query.y) for predictions, batch in zip(found, held, strict=True)]
            return float(torch.cat(each).mean())

        return cost

    def _ends(self, kind: str, support: Examples, drawn: Drawn, served: bool = True) -> Callable[[Tensor], Predictions]:
        """Adapt the members to one task, and return what predicts at x by each."""
        ends: list[Callable[[Tensor], Prediction]] = []
        for member, (noise, draws) in zip(self.members, drawn, strict=True):
            algorithm, meta = member.algorithm, member.meta()
            here = meta._replace(noise=noise, hyper=_hyper(member, kind, served))
            params = adapt(algorithm, support, here, member.evaluation_steps)
            posterior = algorithm.posterior(params, support, here)
            ends.append(partial(_predict, algorithm, kind, params, here, posterior, draws))
        return lambda x: [end(x) for end in ends]

    def _mixed(
        self, kind: str, predictions: Predictions, log_factor: float | None = None, served: bool = True
    ) -> Predictive:
        """Return the mixture, of what the members predict with the values that are ``served``, or as trained."""
        if log_factor is None:
            log_factor = log(self.factors.get(kind, 1.0)) if served else 0.0
        each: list[Any] = []
        for member, prediction in zip(self.members, predictions, strict=True):
            likelihood, hyper = member.algorithm.likelihood, _hyper(member, kind, served)
            if log_factor:
                free = likelihood.free()
                hyper = hyper | {name: hyper.get(name, entry.start) + log_factor for name, entry in free.items()}
            each.append(likelihood.at(hyper).predictive(*prediction))
        return type(each[0]).mixed(each)

    def _of_tasks(self, one: Callable[..., Any], episodes: Episode, seed: int, foreign: Foreign | None = None) -> Any:
        """Return what ``one`` says of each task, given its members' noise and its foreign points."""
        asked = any(kind != "map" for kind in self.predictives)
        drawn = [
            (member.path_noise(episodes, (EVALUATION, seed)), member.draws(episodes, seed) if asked else None)
            for member in self.members
        ]
        given = [tuple(None if noise is None else 0 for noise in pair) for pair in drawn]
        sizes = [member.gradient.at_once for member in self.members if member.gradient.at_once]
        in_dims = (0, given, None if foreign is None else 0)
        return vmap(one, in_dims, chunk_size=min(sizes, default=None))(episodes, drawn, foreign)


def _hyper(member: Learner, kind: str, served: bool) -> Hyper:
    """Return a member's values, as fitted to the predictive or as trained."""
    return member.meta().hyper | (member.served.get(kind, {}) if served else {})


def _predict(
    algorithm: Algorithm, kind: str, params: Params, here: Meta, posterior: Posterior | None, draws: Noise, x: Tensor
) -> Prediction:
    return algorithm.predict(kind, params, x, here, posterior, draws)
