r"""The posterior around the mode of a task, in the model that is linear at theta_i.

    f(x; phi) = f(x; theta_i) + J(x) (phi - theta_i),    phi ~ N(theta, I / tau),    y ~ p(y | f)

A few gradient steps do not end in the mode that Laplace's method asks for; in this model it is a solve away. Over the
outputs of the support set the model is a Gaussian process with mean m = f(theta_i) + J (theta - theta_i) and covariance
K = J J^T / tau; ``newton`` finds a and Q at its mode, and

    mode            theta* = theta + J^T a / tau
    mean            f(x*; theta_i) + J* (theta* - theta_i) = f(x*; theta_i) + J* (theta - theta_i) + K* a
    covariance      J* H^-1 J*^T = K** - K* Q K*^T,    H = tau I + J^T W J at the mode
    log det ratio   log det H - P log tau = log det (I + K W)
    sample          phi = theta* + w - J^T S M^-1 (S^T J w + xi) / tau,    w = eps / sqrt(tau),    eps, xi ~ N(0, I)

For a Gaussian likelihood this is theta + G^T M^-1 (r + G d) / tau with G = J / sigma, r = (y - f) / sigma and d =
theta_i - theta. Where the linearisation stands is where the inner loop ends: without inner steps at theta, whose
Jacobian is then trained to be a good one; after Gauss-Newton steps near the mode itself, where the linear model is
closest to the network.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from meta_exp.adaptation import Params
from meta_exp.curvature.base import Posterior
from meta_exp.curvature.newton import DenseSolver, find_mode
from meta_exp.curvature.rows import Jacobian, Rows, to_matrix, to_params
from meta_exp.likelihoods import Likelihood
from meta_exp.tasks.episode import Examples


class DualNoise(NamedTuple):
    """Standard normal draws: ``prior`` shaped as the parameters, ``data`` [R]; vmap over leading dimensions."""

    prior: Params
    data: Tensor


class ModePosterior(Posterior):
    """N(theta*, H^-1) over the layers that the structure treats.

    Args:
        likelihood: of the targets.
        data: the support set.
        tau: the prior precision.
        layers: that the structure treats, by name.
        jacobian: of the network at theta_i.
        params: theta_i.
        prior_mean: theta.
    """

    at_mode = True

    def __init__(
        self,
        likelihood: Likelihood,
        data: Examples,
        tau: Tensor,
        layers: dict[str, nn.Module],
        jacobian: Jacobian,
        params: Params,
        prior_mean: Params,
    ) -> None:
        self.tau, self.layers, self.jacobian = tau.double(), layers, jacobian
        outputs, self.rows = jacobian(data.x)
        names = [f"{name}.{p}" for name in self.rows for p, _ in layers[name].named_parameters()]
        # without inner steps theta_i is theta itself, and there is no way back to add
        still = all(params[name] is prior_mean[name] for name in names)
        moved = {} if still else {name: params[name] - prior_mean[name] for name in names}
        self.way = {name: to_matrix(layers[name], moved, name) for name in self.rows} if moved else {}
        kernel = self._kernel(self.rows)

        def solver(f: Tensor) -> DenseSolver:
            return DenseSolver(kernel, likelihood.hessian_sqrt(f))

        prior_outputs = outputs.double() - self._along_way(self.rows, outputs)
        self.found = find_mode(likelihood, prior_outputs, data.y, partial(torch.matmul, kernel), solver)

    def _kernel(self, rows: Rows) -> Tensor:
        """Return the prior's covariances of the outputs that have ``rows`` with those of the support set."""
        return torch.stack([block.gram(self.rows[name]) for name, block in rows.items()]).sum(0) / self.tau

    def _along_way(self, rows: Rows, outputs: Tensor) -> Tensor:
        """Return J (theta_i - theta) for outputs [N, C] that have ``rows``."""
        if not self.way:
            return torch.zeros_like(outputs, dtype=torch.float64)
        return torch.stack([block.apply(self.way[n]).double() for n, block in rows.items()]).sum(0).view_as(outputs)

    def log_det_ratio(self) -> Tensor:
        """Log det H - P log tau >= 0, in float64."""
        return self.found.solver.log_det()

    def mode(self) -> Params:
        """Return theta* - theta_i."""
        weights = self.found.a.flatten() / self.tau
        found: Params = {}
        for name, block in self.rows.items():
            matrix = block.combine(weights.to(block.dtype))
            found |= to_params(self.layers[name], name, matrix - self.way[name] if self.way else matrix)
        return found

    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return mean [M, C] and covariance [M, C, C], or ``joint`` [M C, M C], of the linearised outputs at x."""
        outputs, rows = self.jacobian(x)
        kernel = self._kernel(rows)
        mean = outputs + (kernel @ self.found.a.flatten()).view_as(outputs) - self._along_way(rows, outputs)
        seen = self.found.solver.half(kernel.T)
        if joint:
            own = torch.stack([block.gram(block) for block in rows.values()]).sum(0) / self.tau
            return mean, own - seen.T @ seen
        group = outputs.shape[1]
        own = torch.stack([block.squares(group) for block in rows.values()]).sum(0) / self.tau
        each = seen.T.unflatten(0, (-1, group))
        return mean, own - each @ each.mT

    def functional_variance(self, x: Tensor) -> Tensor:
        """Covariances [M, C, C] of the linearised outputs at x [M, *features], in float64."""
        return self.moments(x)[1]

    def sample(self, noise: DualNoise) -> Params:
        """Return one draw of phi - theta_i, exact; vmap over ``noise`` for more."""
        w = {name: eps / self.tau.to(eps.dtype).sqrt() for name, eps in noise.prior.items()}
        matrices = {name: to_matrix(self.layers[name], w, name) for name in self.rows}
        along = torch.stack([block.apply(matrices[name]) for name, block in self.rows.items()]).sum(0)
        weights = self.found.solver.draw(along.double(), noise.data.double()) / self.tau
        delta, mode = Params(), self.mode()
        for name, block in self.rows.items():
            update = matrices[name] - block.combine(weights.to(block.dtype))
            delta |= to_params(self.layers[name], name, update)
        return {name: value + mode[name] for name, value in delta.items()}
