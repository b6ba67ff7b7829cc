r"""The posterior around the mode that a structure finds by its own inverse, in the model that is linear at theta_i.

    g = tau (theta_i - theta) - J^T d log p(y | f) / df    the linear model's gradient at theta_i
    v = -H^-1 g                                             the structure's own step
    theta* = theta_i + s v,    s = argmin over s of the linear model's -log p(y | f + s J v) - log p(theta_i + s v)

The structure's H is not that of the linear model, so that its step has the wrong length: the correlations that it
leaves out make it several times too long. Along it the linear model has one weight, and its mode there is exact: s has
the prior N(s_0, 1 / (tau v.v)) with s_0 = -(theta_i - theta).v / v.v, so that the outputs are a Gaussian process of
rank one (``newton``). Where the structure is exact, as K-FAC of one linear layer is, s is 1 and theta* the mode itself.

    mean            f(x*; theta_i) + J* (theta* - theta_i)
    covariance      J* H^-1 J*^T,    H at theta_i

Derivatives go through no eigenvector: with X = H^-1 J*^T held constant, those of J* X + (J* X)^T - X^T H X are those of
the covariance, and with x held constant those of x + H^-1 (b - H x) are those of H^-1 b.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from meta_exp.adaptation import Params
from meta_exp.curvature.layerwise import LayerPrecision, LayerwisePosterior
from meta_exp.curvature.newton import DenseSolver, find_mode
from meta_exp.curvature.rows import Block, identity_directions, jacobian_rows, to_matrix, to_params
from meta_exp.curvature.taps import Taps
from meta_exp.likelihoods import Likelihood
from meta_exp.tasks.episode import Examples


class LayerwiseModePosterior(LayerwisePosterior):
    """N(theta*, H^-1) with one ``LayerPrecision`` a layer.

    Args:
        precisions: H, by layer.
        taps: the network's hooks.
        params: theta_i.
        likelihood: of the targets.
        data: the support set.
        tau: the prior precision.
        prior_mean: theta.
    """

    at_mode = True

    def __init__(
        self,
        precisions: Mapping[str, LayerPrecision],
        taps: Taps,
        params: Params,
        likelihood: Likelihood,
        data: Examples,
        tau: Tensor,
        prior_mean: Params,
    ) -> None:
        super().__init__(precisions, taps, params)
        outputs, rows = jacobian_rows(taps, params, data.x, identity_directions)
        pull = likelihood.pull(outputs, data.y).flatten()
        way, step = {}, {}
        for name, block in rows.items():
            layer = taps.layers[name]
            start = {f"{name}.{p}": prior_mean[f"{name}.{p}"] for p, _ in layer.named_parameters()}
            moved = {p: params[p] - value for p, value in start.items()}
            way[name] = to_matrix(layer, moved, name).double()
            step[name] = precisions[name].solve(block.combine(pull).double() - tau * way[name])
        along = torch.stack([block.apply(step[n].to(block.dtype)) for n, block in rows.items()]).sum(0).double()
        # of a step of no length the length says nothing
        squares = _inner(step, step).clamp_min(torch.finfo(torch.float64).tiny)
        start_along = -_inner(way, step) / squares
        kernel = along[:, None] * along / (tau * squares)

        def solver(f: Tensor) -> DenseSolver:
            return DenseSolver(kernel, likelihood.hessian_sqrt(f))

        prior_outputs = outputs.double() + start_along * along.view_as(outputs)
        found = find_mode(likelihood, prior_outputs, data.y, partial(torch.matmul, kernel), solver)
        length = start_along + along @ found.a.flatten() / (tau * squares)
        self.moved = {name: length * value for name, value in step.items()}

    def mode(self) -> Params:
        """Return theta* - theta_i."""
        found: Params = {}
        for name, matrix in self.moved.items():
            names = (f"{name}.{p}" for p, _ in self.taps.layers[name].named_parameters())
            found |= to_params(self.taps.layers[name], name, matrix.to(self.params[next(names)].dtype))
        return found

    def sample(self, noise: Params) -> Params:
        """Return one draw of phi - theta_i, exact; vmap over ``noise`` for more."""
        mode = self.mode()
        return {name: value + mode[name] for name, value in super().sample(noise).items()}

    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return mean [M, C] and covariance [M, C, C], or ``joint`` [M C, M C], of the linearised outputs at x."""
        outputs, rows = jacobian_rows(self.taps, self.params, x, identity_directions)
        change = [block.apply(self.moved[n].to(block.dtype)).double() for n, block in rows.items()]
        mean = outputs + torch.stack(change).sum(0).view_as(outputs)
        group = outputs.numel() if joint else outputs.shape[1]
        covariance = torch.stack([_covariance(self.precisions[n], block, group) for n, block in rows.items()]).sum(0)
        return mean, covariance[0] if joint else covariance


def _covariance(precision: LayerPrecision, rows: Block, group: int) -> Tensor:
    """Return a layer's share of J H^-1 J^T [R / group, group, group], its derivatives without an eigenvector's."""
    dense = rows.dense().double()
    solved = precision.solve(dense).detach()

    def grouped(matrices: Tensor) -> Tensor:
        return matrices.flatten(1).unflatten(0, (-1, group))

    cross = grouped(dense) @ grouped(solved).mT
    to_first_order = cross + cross.mT - grouped(precision.multiply(solved)) @ grouped(solved).mT
    # the value comes of squares: a difference would lose a small variance, and its sign
    return precision.variance(rows, group).detach() + to_first_order - to_first_order.detach()


def _inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()
