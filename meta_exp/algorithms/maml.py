r"""MAML (Finn, Abbeel, Levine 2017): the query set's -log p at the adapted parameters.

    theta_i = theta - alpha grad loss(theta, S_i)          (K times)
    objective_i(theta) = -log p(Q_i | theta_i) / M

S_i and Q_i are the support and query set of task i, M the number of query points, alpha the inner learning rate. The
division by M makes the outer learning rate mean the same for any number of queries.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.func import functional_call

from meta_exp.adaptation import Params, adapt, step
from meta_exp.config.checks import require
from meta_exp.curvature import Curvature, Posterior
from meta_exp.likelihoods import Hyper, Likelihood
from meta_exp.tasks.episode import Episode, Examples

Logs = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class MAML:
    """The objective of one task; ``inner_lr`` is alpha, ``inner_steps`` is K.

    MAML trains without a curvature; one given here serves evaluation, as Laplace's approximation after the fact.
    """

    model: nn.Module
    likelihood: Likelihood
    curvature: Curvature | None = None
    inner_lr: float
    inner_steps: int = 1
    first_order: bool = False

    def __post_init__(self) -> None:
        """Refuse a rate or a number of steps that adapts nothing."""
        require(self.inner_lr > 0, "algorithm.inner_lr", "a learning rate > 0", self.inner_lr)
        require(self.inner_steps >= 1, "algorithm.inner_steps", "at least 1", self.inner_steps)
        learned = self.curvature is not None and self.curvature.learned
        remedy = "set it to false; tune_prior_precision=linearized tunes tau after training"
        trains = not learned or "log_prior_precision" in self.hyperparameters()
        require(trains, "curvature.learned=true", "algorithm=llama", "algorithm=maml, which trains without tau", remedy)

    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Return the network's outputs [N, C] at x [N, *features]."""
        return functional_call(self.model, params, (x,))

    def step(self, params: Params, support: Examples) -> Params:
        """Return theta^{k+1} of theta^k, one step on the support set."""
        return step(self._loss(support), params, lr=self.inner_lr, first_order=self.first_order)

    def adapt(self, theta: Params, support: Examples, steps: int) -> list[Params]:
        """Return the path from theta to theta_i after ``steps`` steps on the support set."""
        return adapt(self._loss(support), theta, lr=self.inner_lr, steps=steps, first_order=self.first_order)

    def hyperparameters(self) -> Hyper:
        """Return what is learned beside theta: sigma, if asked."""
        return self.likelihood.hyperparameters()

    def objective(self, theta: Params, hyper: Hyper, episode: Episode) -> tuple[Tensor, Logs]:
        """Return the task's meta-objective, differentiable in ``theta`` and ``hyper``, and scalars to log."""
        return self.objective_at(self.adapt(theta, episode.support, self.inner_steps)[-1], theta, hyper, episode)

    def objective_at(self, theta_i: Params, theta: Params, hyper: Hyper, episode: Episode) -> tuple[Tensor, Logs]:
        """Return the objective as a function of theta_i too."""
        nll = self.likelihood.at(hyper).nll(self.predict(theta_i, episode.query.x), episode.query.y)
        return nll / len(episode.query.y), {}

    def posterior(self, theta_i: Params, data: Examples, hyper: Hyper) -> Posterior | None:
        """Return the Laplace posterior around theta_i given ``data``, where there is a curvature."""
        if self.curvature is None:
            return None
        return self.curvature.posterior(theta_i, data, self.likelihood.at(hyper), hyper)

    def _loss(self, support: Examples) -> Callable[[Params], Tensor]:
        return lambda params: self.likelihood.loss(self.predict(params, support.x), support.y)
