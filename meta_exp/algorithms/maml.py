r"""MAML (Finn, Abbeel, Levine 2017): the query set's -log p at the adapted parameters.

    theta_i = theta - alpha grad loss(theta, S_i)          (K times)
    objective_i(theta) = -log p(Q_i | theta_i) / M

S_i and Q_i are the support and query set of task i, M the number of query points, alpha the inner learning rate. The
division by M makes the outer learning rate mean the same for any number of queries.
"""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from meta_exp.adaptation import Meta, Params, gradient_step
from meta_exp.algorithms.base import Algorithm, Logs
from meta_exp.config.checks import require
from meta_exp.tasks.episode import Episode, Examples


@dataclass(frozen=True, kw_only=True)
class MAML(Algorithm):
    """The objective of one task; ``inner_lr`` is alpha.

    MAML trains without a curvature; one given here serves evaluation, as Laplace's approximation after the fact.
    """

    inner_lr: float
    first_order: bool = False

    def __post_init__(self) -> None:
        """Refuse a rate or a number of steps that adapts nothing, and a tau that nothing trains."""
        super().__post_init__()
        require(self.inner_lr > 0, "algorithm.inner_lr", "a learning rate > 0", self.inner_lr)
        require(self.inner_steps >= 1, "algorithm.inner_steps", "at least 1", self.inner_steps)
        learned = self.curvature is not None and self.curvature.learned
        remedy = "set it to false; tune_prior_precision=linearized tunes tau after training"
        trains = not learned or "log_prior_precision" in self.hyperparameters()
        require(trains, "curvature.learned=true", "algorithm=llama", "algorithm=maml, which trains without tau", remedy)

    def step(self, params: Params, support: Examples, k: int, meta: Meta) -> Params:
        """Return theta^{k+1} of theta^k, a gradient step on the mean loss of the support set."""
        return gradient_step(partial(self.loss, data=support), params, lr=self.inner_lr, first_order=self.first_order)

    def objective(self, path: list[Params], episode: Episode, meta: Meta) -> tuple[Tensor, Logs]:
        """Return -log p(Q_i | theta_i) / M."""
        return self.nll(path[-1], episode.query, meta) / len(episode.query.y), {}
