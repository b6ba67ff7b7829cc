r"""What an algorithm is: where a task starts, one inner step, the objective of the path, and what it predicts with.

    theta^0 = start(theta),    theta^{k+1} = step(theta^k, S_i, k)
    objective_i(theta) = objective(theta^0, ..., theta^K, S_i, Q_i)

Everything else (the loop, vmap over tasks, chunks, compilation, checkpointed steps, evaluation, calibration,
production) is written once against this class and knows no algorithm by name. So that it can be, an algorithm

- is a frozen dataclass, whose fields are the keys of its config, and keeps no state: what changes in training comes in
  with ``Meta``, as ``progress`` or ``noise`` (compiled code would not see a change of anything else);
- has pure methods of one task, which are vmapped: no dimension for tasks, nothing done in place, no random numbers but
  ``Meta.noise``; shapes and control flow do not depend on values;
- takes more steps in evaluation than in training without fail: k may reach beyond ``inner_steps``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from meta_exp import prediction
from meta_exp.adaptation import Meta, Noise, Params
from meta_exp.config.checks import require, require_at_most
from meta_exp.curvature import Curvature, Posterior
from meta_exp.hyper import Learned
from meta_exp.likelihoods import Likelihood
from meta_exp.tasks.episode import Episode, Examples

STEPS = 10**4  # of an inner loop, at most
DRAWS = 10**3  # of a task, or particles
FASTEST, HEAVIEST = 1e3, 1e6  # learning rate, weight in the objective
DEVIATIONS = 1e-6, 1e3  # bounds of a standard deviation; the square of a smaller one is no number to divide by
Logs = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """An algorithm for one network.

    Attributes:
        model: the network; theta are those of its parameters that require gradients, the others stay as they are.
        likelihood: of targets given its outputs.
        curvature: gives the Laplace posterior around theta_i, for predictives and where the objective needs it.
        inner_steps: K.
    """

    model: nn.Module
    likelihood: Likelihood
    curvature: Curvature | None = None
    inner_steps: int = 1

    def __post_init__(self) -> None:
        """Refuse a negative number of steps, and a tau that nothing trains."""
        require(self.inner_steps >= 0, "algorithm.inner_steps", "at least 0", self.inner_steps)
        require_at_most(STEPS, "algorithm.inner_steps", self.inner_steps)
        learned = self.curvature is not None and self.curvature.learned
        got = f"algorithm={self.name}, which trains without tau"
        remedy = "set it to false; tau is fitted after training (calibrate=true)"
        trains = not learned or "log_prior_precision" in self.hyperparameters()
        require(trains, "curvature.learned=true", "algorithm=llama", got, remedy)

    # what an algorithm says

    def start(self, meta: Meta) -> Params:
        """Return theta^0; here the meta-parameters themselves."""
        return meta.theta

    @abstractmethod
    def step(self, params: Params, support: Examples, k: int, meta: Meta) -> Params:
        """Return theta^{k+1} of theta^k = ``params``, one step on the support set."""

    @abstractmethod
    def objective(self, path: list[Params], episode: Episode, meta: Meta) -> tuple[Tensor, Logs]:
        """Return the task's meta-objective, a scalar, and scalars to log.

        It is differentiable in theta, the hyper-parameters and every state of the path theta^0 .. theta^K, or as far as
        ``objective_steps`` go.
        """

    def hyperparameters(self) -> dict[str, Learned]:
        """Return what is learned beside theta; here what the likelihood learns."""
        return self.likelihood.hyperparameters()

    def noise(self, generator: torch.Generator, theta: Params, points: int) -> Noise:
        """Draw what ``Meta.noise`` holds of a task of ``points`` support points; here None, nothing."""
        return None

    def training_noise(self, generator: torch.Generator, theta: Params, points: int) -> Noise:
        """Draw what it holds in training; here what it holds everywhere."""
        return self.noise(generator, theta, points)

    def posterior(self, params: Params, data: Examples, meta: Meta) -> Posterior | None:
        """Return the Laplace posterior around theta_i = ``params`` given ``data``, where there is a curvature."""
        if self.curvature is None:
            return None
        return self.curvature.posterior(params, data, self.likelihood.at(meta.hyper), meta.hyper)

    @property
    def predictives(self) -> tuple[str, ...]:
        """The predictives that it offers, the one to serve last; here all, where there is a curvature."""
        return prediction.KINDS if self.curvature else ("map",)

    @property
    def validated(self) -> tuple[str, ...]:
        """The predictives that validation scores: those that the best checkpoint may be chosen by; here ``map``."""
        return ("map",)

    def draws(self, generator: torch.Generator, shape: tuple[int, ...], theta: Params, points: int) -> Noise:
        """Draw the noise of predictive draws, of leading ``shape``, for a task of ``points`` support points."""
        if self.curvature is None:
            return None
        return self.curvature.noise(generator, shape, theta, points, self.likelihood)

    @property
    def draws_networks(self) -> bool:
        """Whether a task ends in a distribution that networks can be drawn from; here where there is a curvature."""
        return self.curvature is not None

    def predict(
        self,
        kind: str,
        params: Params,
        x: Tensor,
        meta: Meta,
        posterior: Posterior | None = None,
        draws: Noise = None,
    ) -> prediction.Prediction:
        """Predict at x [M, *features] from theta_i = ``params`` by the predictive ``kind``.

        ``sample`` is there wherever networks can be drawn: the mixture of one network for each of the ``draws``.
        """
        likelihood = self.likelihood.at(meta.hyper)
        return prediction.predict(kind, self.network, params, x, likelihood, posterior, draws)

    def outputs(self, params: Params, x: Tensor) -> Tensor:
        """Return what the networks of a state of the path put out at x; here of the one that it is, [N, C]."""
        return self.network(params, x)

    def curved(self, episode: Episode) -> Examples:
        """Return the data of the task whose curvature the objective takes; here the support set."""
        return episode.support

    @property
    def objective_steps(self) -> int:
        """How many steps of the path the objective is given; here all K."""
        return self.inner_steps

    @property
    def holds_to_theta(self) -> bool:
        """Whether the objective holds theta_i to theta, the more the larger tau is."""
        return False

    @property
    def steps_by_hyper(self) -> bool:
        """Whether the path depends on what calibration fits."""
        return True

    @property
    def follows_hyper(self) -> bool:
        """Whether the point prediction depends on what calibration fits; here if the path does."""
        return self.steps_by_hyper

    # what algorithms have in common

    @property
    def name(self) -> str:
        """Its name in conf/algorithm/, which is its file's."""
        return type(self).__module__.rpartition(".")[2]

    def exact(self) -> Self:
        """Return the same as evaluation and production take it, without what training alone saves on."""
        curvature = self.curvature and self.curvature.exact()
        return self if curvature is self.curvature else replace(self, curvature=curvature)

    def free(self) -> dict[str, Learned]:
        """Return what may be fitted after training to what is served."""
        return self.likelihood.free() | (self.curvature.free() if self.curvature else {})

    def network(self, params: Params, x: Tensor) -> Tensor:
        """Return the network's outputs [N, C] at x [N, *features]."""
        return functional_call(self.model, params, (x,))

    def loss(self, params: Params, data: Examples) -> Tensor:
        """Return the inner loop's loss of the network on ``data``, a mean over points."""
        return self.likelihood.loss(self.network(params, data.x), data.y)

    def nll(self, params: Params, data: Examples, meta: Meta) -> Tensor:
        """Return -log p(data | params), a sum over points."""
        return self.likelihood.at(meta.hyper).nll(self.network(params, data.x), data.y)
