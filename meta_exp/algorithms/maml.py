r"""MAML (Finn, Abbeel, Levine 2017): the query set's -log p at the adapted parameters.

    theta_i = theta - alpha grad loss(theta, S_i)          (K times)
    objective_i(theta) = -log p(Q_i | theta_i) / M

S_i and Q_i are the support and query set of task i, M the number of query points, alpha the inner learning rate. The
division by M makes the outer learning rate mean the same for any number of queries.

With a curvature, adaptation can go further than gradient steps do. ``inner_loop=gauss_newton`` takes K steps to the
mode of the model that is linear at theta^k, with the prior N(theta, I / tau); ``mode`` ends the path in that of the
linear model at theta_i, whose outputs take the network's place:

    objective_i = -log p(Q_i | f + J (theta* - theta_i)) / M

Layers may ``stay``: they are theta's own in every task, learned in the outer loop alone, and the curvature takes them
as known. The paper of LLAMA, section 5.2, has norms stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from meta_exp.adaptation import Meta, Params, gradient_step
from meta_exp.algorithms.base import FASTEST, Algorithm, Logs
from meta_exp.config.checks import require, require_at_most
from meta_exp.curvature import Posterior
from meta_exp.models.layers import choose_layers, layers_with_parameters, parameters_of
from meta_exp.tasks.episode import Episode, Examples


@dataclass(frozen=True, kw_only=True)
class MAML(Algorithm):
    """The objective of one task.

    MAML trains without a curvature, unless it adapts to the mode; one given here serves evaluation, as Laplace's
    approximation after the fact.

    Attributes:
        inner_lr: alpha.
        inner_steps: K; may be 0 where the path ends in the mode.
        inner_loop: what a step is; ``gauss_newton`` takes no alpha.
        first_order: take inner gradients as constants.
        mode: end in the mode of the linear model, in training and wherever the run is used.
        stay: layers that neither adapt nor enter the curvature, by name, place or kind (``models.layers``).
    """

    inner_lr: float
    inner_loop: Literal["gradient", "gauss_newton"] = "gradient"
    first_order: bool = False
    mode: bool = False
    stay: Sequence[str | int] = ()

    def __post_init__(self) -> None:
        """Refuse a rate or a number of steps that adapts nothing, and a mode that cannot be found."""
        if self.curvature is not None and self.staying:
            treated = list(self.curvature.taps.layers)
            left = not self.staying.issuperset(treated)
            expected = f"a choice that leaves the curvature one of its layers, {', '.join(treated)}"
            require(left, "algorithm.stay", expected, list(self.stay))
            object.__setattr__(self, "curvature", self.curvature.without(self.staying))
        super().__post_init__()
        require(self.inner_lr > 0, "algorithm.inner_lr", "a learning rate > 0", self.inner_lr)
        require_at_most(FASTEST, "algorithm.inner_lr", self.inner_lr)
        least = 0 if self.mode else 1
        require(self.inner_steps >= least, "algorithm.inner_steps", f"at least {least}", self.inner_steps)
        remains = len(self.adapted) > 0 or not self.stay
        require(remains, "algorithm.stay", "a choice that leaves a layer to adapt", list(self.stay))
        loops = ("gradient", "gauss_newton")
        require(self.inner_loop in loops, "algorithm.inner_loop", "gradient or gauss_newton", self.inner_loop)
        key = "algorithm.mode=true" if self.mode else f"algorithm.inner_loop={self.inner_loop}"
        able = self.curvature is not None and self.curvature.finds_mode
        got = f"curvature={type(self.curvature).__name__.lower() if self.curvature else 'none'}"
        needed = self.mode or self.inner_loop == "gauss_newton"
        remedy = "choose curvature=ggn, last_layer, kfac or diagonal"
        require(able or not needed, key, "a curvature that can find the mode", got, remedy)
        got = type(self.likelihood).__name__
        require(self.likelihood.concave or not needed, key, "a likelihood whose log is concave in the outputs", got)

    @cached_property
    def staying(self) -> set[str]:
        """Names of the layers that stay."""
        return choose_layers(self.model, self.stay, "algorithm.stay")

    @cached_property
    def adapted(self) -> tuple[str, ...]:
        """Names of the parameters that adapt."""
        return parameters_of(self.model, set(layers_with_parameters(self.model)) - self.staying)

    def step(self, params: Params, support: Examples, k: int, meta: Meta) -> Params:
        """Return theta^{k+1} of theta^k, a step on the support set."""
        if self.inner_loop == "gauss_newton":
            return self._mode(params, support, meta)
        return self.descend(params, support, self.rates(k, meta), self.first_order)

    def descend(self, params: Params, support: Examples, lr: float | Params, first_order: bool | Tensor) -> Params:
        """Return ``params`` after a gradient step of those that adapt."""

        def loss(part: Params) -> Tensor:
            return self.loss(params | part, support)

        moving = {name: params[name] for name in self.adapted}
        return params | gradient_step(loss, moving, lr=lr, first_order=first_order)

    def rates(self, k: int, meta: Meta) -> float | Params:
        """Return alpha of step k, one for all parameters or by name."""
        return self.inner_lr

    def objective(self, path: list[Params], episode: Episode, meta: Meta) -> tuple[Tensor, Logs]:
        """Return -log p(Q_i | theta_i) / M."""
        posterior = self.posterior(path[-1], episode.support, meta) if self.mode else None
        return self.query_nll(path[-1], posterior, episode, meta) / len(episode.query.y), {}

    @property
    def steps_by_hyper(self) -> bool:
        """Whether the path depends on what calibration fits: gradient steps on a mean loss do not."""
        return self.inner_loop == "gauss_newton"

    @property
    def follows_hyper(self) -> bool:
        """Whether the point prediction depends on what calibration fits."""
        return self.mode or self.steps_by_hyper

    def posterior(self, params: Params, data: Examples, meta: Meta) -> Posterior | None:
        """Return the Laplace posterior given ``data``, where there is a curvature: around theta_i, or the mode."""
        if self.curvature is None:
            return None
        prior_mean = meta.theta if self.mode else None
        return self.curvature.posterior(params, data, self.likelihood.at(meta.hyper), meta.hyper, prior_mean)

    def query_nll(self, params: Params, posterior: Posterior | None, episode: Episode, meta: Meta) -> Tensor:
        """Return -log p(Q_i | theta_i), a sum over points; in the linear model where ``posterior`` is at its mode."""
        if posterior is None or not posterior.at_mode:
            return self.nll(params, episode.query, meta)
        [outputs] = self.predict("map", params, episode.query.x, meta, posterior).outputs
        return self.likelihood.at(meta.hyper).nll(outputs, episode.query.y)

    def _mode(self, params: Params, support: Examples, meta: Meta) -> Params:
        """Return the mode of the model that is linear at ``params``."""
        assert self.curvature is not None
        likelihood = self.likelihood.at(meta.hyper)
        found = self.curvature.posterior(params, support, likelihood, meta.hyper, meta.theta).mode()
        assert found is not None
        return params | {name: params[name] + value for name, value in found.items()}
