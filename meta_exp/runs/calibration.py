r"""Tuning of the prior precision tau after training: one tau for all tasks, chosen on the validation tasks.

    linearized, sample    -log p(y | x, S_i, tau) of that predictive, on average over query points
    marginal_likelihood   [ -log p(S_i | theta_i) + tau / 2 ||theta_i - theta||^2 + 1/2 log det(H_i / tau) ] / N

theta and sigma stay as trained. The last is Laplace's -log marginal likelihood of the N support points alone, at
theta_i as adapted, which a few inner steps do not bring to its mode. Accuracy and squared error cannot choose tau: they
hardly depend on it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map, tree_map_only

from meta_exp.adaptation import Meta, Noise, adapt
from meta_exp.algorithms import Algorithm
from meta_exp.config.checks import require
from meta_exp.tasks.episode import Episode
from meta_exp.training.learner import EVALUATION, Learner

CRITERIA = ("linearized", "sample", "marginal_likelihood")
GRID = tuple(float(f"{10 ** (k / 3):.3g}") for k in range(-6, 22))  # 0.01 to 1e7, three to a decade
AT_ONCE = 4  # values of tau whose predictive draws are in memory together


@dataclass(frozen=True)
class Tuning:
    """A tuned ``prior_precision``, and what it was tuned on."""

    prior_precision: float
    criterion: str
    trained_with: float
    validation_tasks: int
    inner_steps: int
    grid: list[float]
    scores: list[float]

    @property
    def at_edge(self) -> bool:
        """Whether the best value is the least or the greatest of the grid."""
        return self.prior_precision in (self.grid[0], self.grid[-1])


def check_criterion(criterion: str | None, algorithm: Algorithm) -> None:
    """Raise ValueError for a criterion that is unknown, or that has no curvature to tune."""
    if criterion is None:
        return
    key = "tune_prior_precision"
    require(criterion in CRITERIA, key, f"null or one of {', '.join(CRITERIA)}", criterion)
    remedy = "choose curvature=ggn, kfac, diagonal or last_layer"
    require(algorithm.curvature is not None, f"{key}={criterion}", "a curvature", "curvature=none", remedy)


def tune(learner: Learner, batches: Iterable[Episode], criterion: str) -> Tuning:
    """Return the value of ``GRID`` with the lowest criterion over the tasks of ``batches``; changes nothing.

    Tasks are taken one by one, each with the posterior draws that its place in the validation set gives it.
    """
    check_criterion(criterion, learner.algorithm)
    assert learner.algorithm.curvature is not None
    meta = learner.meta()
    trained_with = float(learner.algorithm.curvature.tau(meta.hyper))
    grid = torch.tensor(GRID, dtype=torch.float64, device=learner.device)
    score = partial(criterion_of, learner.algorithm, criterion, learner.evaluation_steps)
    scores = []
    tasks = [tree_map(lambda v, i=i: v[i : i + 1], batch) for batch in batches for i in range(len(batch.query.y))]
    for i, episode in enumerate(track(tasks, "Tuning tau", console=Console(stderr=True), transient=True)):
        episode = tree_map(lambda v: v.to(learner.device), episode)
        drawn = episode, learner.draws(episode, seed=i), learner.path_noise(episode, (EVALUATION, i))
        one, draws, noise = tree_map_only(Tensor, lambda v: v[0], drawn)
        over_taus = vmap(partial(score, meta._replace(noise=noise), one, draws), chunk_size=AT_ONCE)
        with torch.no_grad():
            scores.append(over_taus(grid))
    mean = torch.stack(scores).mean(0)
    mean = torch.where(mean.isnan(), torch.inf, mean)
    return Tuning(
        GRID[int(mean.argmin())],
        criterion,
        trained_with,
        len(tasks),
        learner.evaluation_steps,
        list(GRID),
        mean.tolist(),
    )


def criterion_of(
    algorithm: Algorithm,
    criterion: str,
    steps: int,
    meta: Meta,
    episode: Episode,
    draws: Noise,
    tau: Tensor,
) -> Tensor:
    """Return the criterion of one task at one tau, a scalar in nats per point."""
    assert algorithm.curvature is not None
    meta = meta._replace(hyper=meta.hyper | {"log_prior_precision": tau.log()})
    likelihood = algorithm.likelihood.at(meta.hyper)
    support, query = episode
    theta_i = adapt(algorithm, support, meta, steps)
    posterior = algorithm.posterior(theta_i, support, meta)
    assert posterior is not None
    if criterion == "marginal_likelihood":
        nll = algorithm.nll(theta_i, support, meta).double()
        prior = algorithm.curvature.prior_term(theta_i, meta.theta, meta.hyper).double()
        return (nll + prior + posterior.log_det_ratio() / 2) / len(support.y)
    prediction = algorithm.predict(criterion, theta_i, query.x, meta, posterior, draws)
    return -likelihood.predictive(*prediction).log_prob(query.y).double().mean()
