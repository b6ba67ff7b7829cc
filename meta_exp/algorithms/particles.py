r"""What algorithms that end in several networks share: a state of S particles, which predict as an equal mixture.

    p(y | x, S_i) = 1/S sum_s p(y | f(x; phi_s))

A state holds every parameter with a leading S. The mixture stands in the place of ``map``: it is what the algorithm has
adapted to, and takes no draws. To draw a network is to take one particle by chance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from meta_exp.adaptation import Meta, Noise, Params
from meta_exp.algorithms.base import DRAWS, FASTEST, Algorithm
from meta_exp.config.checks import require, require_at_most
from meta_exp.curvature import Posterior
from meta_exp.curvature.base import draw_normal
from meta_exp.prediction import Prediction, mixture
from meta_exp.tasks.episode import Examples

Found = TypeVar("Found", Tensor, Params)


@dataclass(frozen=True, kw_only=True)
class Particles(Algorithm):
    """An algorithm whose states are S networks.

    Attributes:
        inner_lr: alpha.
        particles: S, wherever the run is used.
    """

    inner_lr: float
    particles: int

    def __post_init__(self) -> None:
        """Refuse a rate or numbers that adapt nothing, and a curvature."""
        refuse_curvature(self)
        super().__post_init__()
        require(self.inner_lr > 0, "algorithm.inner_lr", "a learning rate > 0", self.inner_lr)
        require_at_most(FASTEST, "algorithm.inner_lr", self.inner_lr)
        require(self.inner_steps >= 1, "algorithm.inner_steps", "at least 1", self.inner_steps)
        require(self.particles >= 1, "algorithm.particles", "at least 1", self.particles)
        require_at_most(DRAWS, "algorithm.particles", self.particles)

    def nlls(self, params: Params, data: Examples, meta: Meta) -> Tensor:
        """Return -log p(data | phi_s) [S], sums over points."""
        return of_each(lambda one: self.nll(one, data, meta), params)

    @property
    def predictives(self) -> tuple[str, ...]:
        """The mixture."""
        return ("map",)

    def predict(
        self,
        kind: str,
        params: Params,
        x: Tensor,
        meta: Meta,
        posterior: Posterior | None = None,
        draws: Noise = None,
    ) -> Prediction:
        """Predict at x [M, *features] by all particles; by those that ``draws`` choose where the kind is ``sample``."""
        if kind == "sample":
            places = (torch.special.ndtr(draws) * self.particles).long().clamp(max=self.particles - 1)
            params = {name: value[places] for name, value in params.items()}
        return mixture(self.outputs(params, x))

    def outputs(self, params: Params, x: Tensor) -> Tensor:
        """Return the outputs [S, N, C] of all particles."""
        return of_each(lambda one: self.network(one, x), params)

    @property
    def draws_networks(self) -> bool:
        """Whether networks can be drawn for a task."""
        return True

    def draws(self, generator: torch.Generator, shape: tuple[int, ...], theta: Params, points: int) -> Noise:
        """Draw a number for each draw, which chooses a particle."""
        return draw_normal(generator, shape, theta)

    @property
    def steps_by_hyper(self) -> bool:
        """Whether the path depends on what calibration fits: steps on a mean loss do not."""
        return False


def of_each(function: Callable[[Params], Found], params: Params) -> Found:
    """Return what ``function`` gives of each of S networks, or draws, with parameters [S, ...], stacked.

    A single one is taken by itself: derivatives of a product of matrices then lie in memory as the weights do, which
    those of a batch of one do not.
    """
    if len(next(iter(params.values()))) > 1:
        return vmap(function)(params)
    return tree_map(lambda value: value[None], function({name: value[0] for name, value in params.items()}))


def refuse_curvature(algorithm: Algorithm) -> None:
    """Raise ValueError where an algorithm that has a posterior of its own was given a curvature."""
    got = f"curvature={type(algorithm.curvature).__name__.lower()}"
    remedy = "it has a posterior of its own; set curvature=none"
    require(algorithm.curvature is None, f"algorithm={algorithm.name}", "no curvature", got, remedy)
