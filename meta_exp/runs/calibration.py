r"""Calibration after training: what likelihood and posterior leave free, fitted to what is served.

    hyper_kind = argmin over sigma or temperature, and tau, of -log p_kind(y | x, S_i)

on average over the query points of the validation tasks, adapted by the evaluation's steps; theta stays as trained. Of
classes there is one point more, of any class (``fitted_nll``): with no error there would be no best temperature.
sigma is learned from the error after the training's steps, and served after the evaluation's; tau is often no more than
a guess. Each predictive has values of its own: the plain network takes the posterior's share of the error into sigma,
the linearised predictive has tau for that. In log space, by SciPy's Nelder-Mead from the best point of a coarse grid.

What is then served gets thresholds for conformal intervals and sets (``scoring/conformal.py``), by fresh tasks of the
validation split: those above have chosen the checkpoint and the values.

What of it changes predictions (tau, and sigma through the curvature) is fitted outside, and what only spreads them
(the temperature; sigma, where no posterior is asked) inside, where a prediction is computed once for all values.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from math import inf, isfinite
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from meta_exp.adaptation import Meta, Noise, Params, adapt
from meta_exp.config.checks import one_line, require
from meta_exp.files import read_json, write_json
from meta_exp.hyper import Hyper
from meta_exp.likelihoods import Likelihood
from meta_exp.prediction import Prediction
from meta_exp.scoring.conformal import Conformal, fit, nonconformity
from meta_exp.tasks.episode import Episode
from meta_exp.tasks.stream import EVALUATION_BATCH
from meta_exp.training.learner import EVALUATION, Learner

FACTORS = {  # of the grid, times the value as trained
    "log_prior_precision": (1e-4, 1e-2, 1.0, 1e2),
    "log_sigma_noise": (1 / 9, 1 / 3, 1.0),
}
OTHER = (0.5, 1.0, 2.0)
SHORT = {"sigma_noise": "sigma", "prior_precision": "tau"}
CALIBRATION = "calibration.json"  # in a run's folder
TOLERANCE = 1e-2  # in log space; a hundredth of it in nats


@dataclass(frozen=True)
class Calibration:
    """Fitted values by predictive and name, the NLL per point that they give, and as trained, on validation tasks.

    ``conformal`` holds the thresholds of each predictive; none where there were no fresh tasks.
    """

    values: dict[str, dict[str, float]]
    nll: dict[str, float]
    nll_raw: dict[str, float]
    validation_tasks: int
    inner_steps: int
    conformal: dict[str, Conformal] = field(default_factory=dict)

    def serve(self, learner: Learner) -> None:
        """Have ``learner`` predict with the values and the thresholds."""
        learner.served, learner.conformal = self.hyper(learner), self.conformal

    def write(self, folder: Path) -> None:
        """Write it into a run's folder."""
        write_json(folder / CALIBRATION, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read it from a run's folder.

        Raises:
            ValueError: the file holds no calibration.
            OSError: it cannot be read.
        """
        file = folder / CALIBRATION
        found = read_json(file, "the values of a calibration")
        try:
            conformal = {kind: Conformal(**record) for kind, record in found.pop("conformal", {}).items()}
            calibration = cls(**found, conformal=conformal)
            for scores in (calibration.nll, calibration.nll_raw):  # JSON knows no infinity
                scores.update({kind: inf for kind, value in scores.items() if value is None})
            positive = all(0 < float(v) < inf for values in calibration.values.values() for v in values.values())
            ascending = all(_ascends(record.thresholds) for record in conformal.values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: expected the values of a calibration, got {one_line(error)}") from error
        require(positive, str(file), "values > 0", "others")
        require(ascending, str(file), "thresholds in ascending order", "others")
        return calibration

    def describe(self) -> str:
        """Return the NLLs and values in words, a line for each predictive."""
        return "\n".join(f"  {self._words(kind)}" for kind in self.values)

    def _words(self, kind: str) -> str:
        fitted = "".join(f", {SHORT.get(name, name)} {value:.4g}" for name, value in self.values[kind].items())
        return f"{kind} NLL {self.nll_raw[kind]:.4g} -> {self.nll[kind]:.4g}{fitted}"

    def hyper(self, learner: Learner) -> dict[str, Hyper]:
        """Return the values as functions of the method take them."""
        free = learner.algorithm.free()
        found: dict[str, Hyper] = {}
        for kind, values in self.values.items():
            by_name = {entry.name: key for key, entry in free.items()}
            found[kind] = {by_name[n]: torch.tensor(v, dtype=torch.float64).log() for n, v in values.items()}
        return found


@dataclass(frozen=True)
class _Batch:
    """Validation tasks that have adapted."""

    params: Params
    episodes: Episode
    draws: Noise
    noise: Noise


@torch.no_grad()
def calibrate(learner: Learner, batches: Iterable[Episode], fresh: Iterable[Episode] = ()) -> Calibration:
    """Fit what is free to the tasks of ``batches``, for each predictive of ``learner``; changes nothing.

    The thresholds of conformal intervals and sets are those of the tasks of ``fresh``.
    """
    algorithm, meta = learner.algorithm, learner.meta()
    free = algorithm.free()
    closed = algorithm.likelihood.closed_form
    drawn = any(kind == "sample" or (kind == "linearized" and not closed) for kind in learner.predictives)
    held = list(_adapted(learner, meta, batches, drawn))
    if not drawn:  # all tasks at once: there are a hundred evaluations, and draws alone would fill the memory
        held = [_joined(held)]
    values: dict[str, dict[str, float]] = {}
    nll: dict[str, float] = {}
    raw: dict[str, float] = {}
    for kind in learner.predictives:
        outer, inner = _split(learner, kind)

        def predictions(hyper: Hyper, kind: str = kind) -> list[Prediction]:
            at = meta._replace(hyper=meta.hyper | hyper)
            return [_predict(learner, kind, at, batch) for batch in held]

        def score(found: Sequence[Prediction], hyper: Hyper, fitted: bool = True) -> float:
            return _mean_nll(learner, meta.hyper | hyper, found, held, fitted)

        start = {name: float(free[name].start if name not in meta.hyper else meta.hyper[name]) for name in free}
        best = _fit(outer, inner, start, predictions, score)
        for scores, at in ((raw, start), (nll, best)):
            scores[kind] = score(predictions(_tensors({name: at[name] for name in outer})), _tensors(at), fitted=False)
        values[kind] = {free[name].name: float(np.exp(value)) for name, value in best.items()}
    found = Calibration(values, nll, raw, sum(len(b.episodes.query.y) for b in held), learner.evaluation_steps)
    return replace(found, conformal=_thresholds(learner, meta, found.hyper(learner), fresh, drawn))


def _adapted(learner: Learner, meta: Meta, batches: Iterable[Episode], drawn: bool) -> Iterator[_Batch]:
    for k, episodes in enumerate(batches):
        episodes = tree_map(lambda value: value.to(learner.device), episodes)
        noise = learner.path_noise(episodes, (EVALUATION, k))
        draws = learner.draws(episodes, k) if drawn else None
        yield _Batch(_adapt(learner, meta, episodes, noise), episodes, draws, noise)


def _thresholds(
    learner: Learner, meta: Meta, served: Mapping[str, Hyper], fresh: Iterable[Episode], drawn: bool
) -> dict[str, Conformal]:
    """Return the thresholds of each predictive as it is ``served``."""
    likelihood = learner.algorithm.likelihood
    scores: dict[str, list[Tensor]] = {kind: [] for kind in learner.predictives}
    if drawn:  # which takes memory for each task
        fresh = (part for batch in fresh for part in _parts(batch))
    for batch in _adapted(learner, meta, fresh, drawn):
        for kind, found in scores.items():
            at = meta._replace(hyper=meta.hyper | served[kind])
            given = likelihood.at(at.hyper)

            def one(prediction: Prediction, y: Tensor, given: Likelihood = given) -> Tensor:
                return nonconformity(given.predictive(*prediction), y)

            found.append(vmap(one)(_predict(learner, kind, at, batch), batch.episodes.query.y).cpu())
    return {kind: fit(torch.cat(found)) for kind, found in scores.items() if found}


def _parts(episodes: Episode) -> Iterator[Episode]:
    for start in range(0, len(episodes.query.y), EVALUATION_BATCH):
        yield tree_map(lambda value, start=start: value[start : start + EVALUATION_BATCH], episodes)


def _joined(batches: Sequence[_Batch]) -> _Batch:
    parts = [(batch.params, batch.episodes, batch.noise) for batch in batches]
    params, episodes, noise = tree_map(lambda *v: None if v[0] is None else torch.cat(v), *parts)
    return _Batch(params, episodes, None, noise)


def _split(learner: Learner, kind: str) -> tuple[list[str], list[str]]:
    """Return the free values that change predictions of ``kind``, and those that only spread them."""
    algorithm = learner.algorithm
    of_likelihood, of_curvature = algorithm.likelihood.free(), algorithm.curvature.free() if algorithm.curvature else {}
    if (kind == "map" or not algorithm.curvature) and not algorithm.follows_hyper:
        return [], list(of_likelihood)
    bent = [name for name in of_likelihood if name in algorithm.likelihood.curved]
    return [*bent, *of_curvature], [name for name in of_likelihood if name not in bent]


def _fit(
    outer: Sequence[str],
    inner: Sequence[str],
    start: Mapping[str, float],
    predictions: Callable[[Hyper], Any],
    score: Callable[[Any, Hyper], float],
) -> dict[str, float]:
    """Return the best values in log space: those of ``start`` where none are better."""

    def spread(found: Any, at: Mapping[str, float]) -> tuple[dict[str, float], float]:
        """Fit the inner values to predictions that are there already."""

        def cost(point: Sequence[float]) -> float:
            return score(found, _tensors(dict(at) | dict(zip(inner, point, strict=True))))

        if not inner:
            return {}, cost(())
        point, value = _minimum(cost, inner, [start[name] for name in inner])
        return dict(zip(inner, point, strict=True)), value

    def at(point: Sequence[float]) -> tuple[dict[str, float], float]:
        values = dict(zip(outer, point, strict=True))
        inside, value = spread(predictions(_tensors(values)), values)
        return values | inside, value

    raw = score(predictions(_tensors({name: start[name] for name in outer})), _tensors(start))
    if not outer:
        best, value = at(())
    else:
        point, _ = _minimum(lambda point: at(point)[1], outer, [start[name] for name in outer])
        best, value = at(point)
    return best if value < raw else {name: start[name] for name in [*outer, *inner]}


def _minimum(
    cost: Callable[[Sequence[float]], float], names: Sequence[str], start: Sequence[float]
) -> tuple[list[float], float]:
    """Minimise over a coarse grid around ``start``, and from its best point by Nelder-Mead."""

    def safe(point: Sequence[float]) -> float:
        value = cost(point)
        return value if value == value else float("inf")

    steps = [np.log(FACTORS.get(name, OTHER)) for name in names]
    grid = [[s + step for s, step in zip(start, place, strict=True)] for place in product(*steps)]
    best = min(grid, key=safe)
    if not isfinite(least := safe(best)):  # predictions that no value makes finite
        return list(start), least
    options = {"xatol": TOLERANCE, "fatol": TOLERANCE / 100, "maxfev": 40 * len(names)}
    simplex = [best, *([b + 0.5 * (i == j) for j, b in enumerate(best)] for i in range(len(best)))]
    found = minimize(safe, best, method="Nelder-Mead", options=options | {"initial_simplex": simplex})
    return [float(value) for value in found.x], float(found.fun)


def _ascends(values: Sequence[float]) -> bool:
    return list(map(float, values)) == sorted(map(float, values))


def _tensors(values: Mapping[str, float]) -> Hyper:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def _adapt(learner: Learner, meta: Meta, episodes: Episode, noise: Noise) -> Params:
    def one(episode: Episode, noise: Noise) -> Params:
        return adapt(learner.algorithm, episode.support, meta._replace(noise=noise), learner.evaluation_steps)

    in_dims = (0, None if noise is None else 0)
    return vmap(one, in_dims, chunk_size=learner.gradient.at_once)(episodes, noise)


def _predict(learner: Learner, kind: str, meta: Meta, batch: _Batch) -> Prediction:
    """Predict the queries of a batch of tasks with the hyper-parameters of ``meta``."""
    algorithm = learner.algorithm
    params = _adapt(learner, meta, batch.episodes, batch.noise) if algorithm.steps_by_hyper else batch.params
    draws = None if kind == "map" else batch.draws

    def one(params: Params, episode: Episode, draws: Noise, noise: Noise) -> Prediction:
        here = meta._replace(noise=noise)
        asked = kind != "map" or algorithm.follows_hyper
        posterior = algorithm.posterior(params, episode.support, here) if asked else None
        return algorithm.predict(kind, params, episode.query.x, here, posterior, draws)

    in_dims = (0, 0, None if draws is None else 0, None if batch.noise is None else 0)
    chunk = learner.gradient.at_once
    return vmap(one, in_dims, chunk_size=chunk)(params, batch.episodes, draws, batch.noise)


def _mean_nll(
    learner: Learner, hyper: Hyper, found: Sequence[Prediction], held: Sequence[_Batch], fitted: bool
) -> float:
    """Return the mean NLL of predictions, or what is ``fitted`` in its place."""
    likelihood = learner.algorithm.likelihood.at(hyper)
    points = sum(batch.episodes.query.y.shape[:2].numel() for batch in held)

    def one(prediction: Prediction, y: Tensor) -> Tensor:
        predictive = likelihood.predictive(*prediction)
        return predictive.fitted_nll(y, points) if fitted else -predictive.log_prob(y).double().mean()

    each = [vmap(one)(prediction, batch.episodes.query.y) for prediction, batch in zip(found, held, strict=True)]
    return float(torch.cat(each).mean())
