r"""Newton's method for the mode of a Gaussian process with any likelihood, in function space.

    f ~ N(m, K),    y ~ p(y | f)

With the GGN's W = S S^T = blockdiag Lambda and g = d log p(y | f) / df, both at f (Rasmussen and Williams 2006, 3.5):

    b = W (f - m) + g,    a = b - Q K b,    f <- m + K a
    Q = (K + W^-1)^-1 = S M^-1 S^T,    M = I + S^T K S >= I

A likelihood that is quadratic in f has its mode after one step; else a step that overshoots is halved. The steps are
taken without derivatives, and one more with them: at its fixed point Newton's map does not depend on where it starts,
so that the derivative of that one step is the derivative of the mode (the implicit function theorem).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from meta_exp.curvature.spectrum import cholesky, solve
from meta_exp.likelihoods import Likelihood

NEWTON_STEPS = 16  # converge quadratically; classes take four, under a very weak prior ten or more
HALVINGS = 16  # of a step that overshoots


class Solver(ABC):
    """Q = (K + W^-1)^-1 at given outputs f [N, C], in float64."""

    @abstractmethod
    def apply(self, v: Tensor) -> Tensor:
        """Return Q v for v [N C, k]."""

    @abstractmethod
    def draw(self, v: Tensor, xi: Tensor) -> Tensor:
        """Return S M^-1 (S^T v + xi) for v [N C] and standard normal numbers xi [N Q]."""

    @abstractmethod
    def log_det(self) -> Tensor:
        """Log det (I + K W)."""


class DenseSolver(Solver):
    """By the Cholesky factor of M [N Q, N Q], for any ``kernel`` K [N C, N C] and ``root`` S [N, C, Q]."""

    def __init__(self, kernel: Tensor, root: Tensor) -> None:
        self.root = root
        rotated = self._down(self._down(kernel).T)
        eye = torch.eye(len(rotated), dtype=kernel.dtype, device=kernel.device)
        self.factor = cholesky(eye + rotated)

    def _down(self, v: Tensor) -> Tensor:
        """Return S^T v."""
        return torch.einsum("ncq,nck->nqk", self.root, v.unflatten(0, self.root.shape[:2])).flatten(0, 1)

    def apply(self, v: Tensor) -> Tensor:
        """Return S M^-1 S^T v."""
        solved = solve(self.factor, self._down(v)).unflatten(0, (len(self.root), -1))
        return torch.einsum("ncq,nqk->nck", self.root, solved).flatten(0, 1)

    def half(self, v: Tensor) -> Tensor:
        """Return F = L^-1 S^T v with L L^T = M, so that F^T F = v^T Q v, [N Q, k]."""
        return torch.linalg.solve_triangular(self.factor, self._down(v), upper=False)

    def draw(self, v: Tensor, xi: Tensor) -> Tensor:
        """Return S M^-1 (S^T v + xi)."""
        solved = solve(self.factor, self._down(v[:, None]) + xi[:, None])
        return torch.einsum("ncq,nq->nc", self.root, solved.view(len(self.root), -1)).flatten()

    def log_det(self) -> Tensor:
        """Return log det M."""
        return 2 * self.factor.diagonal().log().sum()


Found = TypeVar("Found", bound=Solver)


class Mode(NamedTuple, Generic[Found]):
    """The mode in function space: ``a`` [N, C], outputs ``f`` [N, C], and the solver there."""

    a: Tensor
    f: Tensor
    solver: Found


def find_mode(
    likelihood: Likelihood,
    prior_mean: Tensor,
    y: Tensor,
    multiply: Callable[[Tensor], Tensor],
    solve: Callable[[Tensor], Found],
) -> Mode[Found]:
    """Return the mode of -log p(y | f) + (f - m)^T K^-1 (f - m) / 2.

    Args:
        likelihood: of y given outputs f.
        prior_mean: m [N, C], in float64.
        y: targets of N points.
        multiply: maps a [N C, k] to K a.
        solve: maps outputs f [N, C] to the solver there.
    """

    def step(f: Tensor) -> Tensor:
        """Return the a of Newton's next iterate from f."""
        b = (likelihood.weigh(f, f - prior_mean) + likelihood.pull(f, y)).flatten()[:, None]
        return (b - solve(f).apply(multiply(b)))[:, 0]

    if likelihood.quadratic:
        a = step(prior_mean)
        f = prior_mean + multiply(a[:, None]).view_as(prior_mean)
        return Mode(a.view_as(f), f, solve(f))

    def energy(a: Tensor, k_a: Tensor) -> Tensor:
        return likelihood.nll(prior_mean + k_a.view_as(prior_mean), y) + a @ k_a / 2

    scales = 0.5 ** torch.arange(HALVINGS + 1, dtype=prior_mean.dtype, device=prior_mean.device)[:, None]
    a, k_a = torch.zeros_like(prior_mean).flatten(), torch.zeros_like(prior_mean).flatten()
    f = torch.zeros_like(prior_mean)  # where nothing is sure: at m it may be, of a wrong class, and steps overshoot
    for _ in range(NEWTON_STEPS):
        way = (step(f) - a).detach()  # derivatives are those of the last step alone
        k_way = multiply(way[:, None])[:, 0].detach()
        energies = vmap(energy)(a + scales * way, k_a + scales * k_way).detach().nan_to_num(nan=torch.inf)
        scale = 0.5 ** energies.argmin()
        a, k_a = a + scale * way, k_a + scale * k_way
        f = (prior_mean + k_a.view_as(prior_mean)).detach()
    a = step(f)
    f = prior_mean + multiply(a[:, None]).view_as(prior_mean)
    return Mode(a.view_as(f), f, solve(f))
