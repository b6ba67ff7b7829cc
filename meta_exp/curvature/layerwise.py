r"""The Gaussian posterior N(theta_i, H^-1) whose H is block diagonal over layers.

    H = blockdiag(H_1, ..., H_L)

Each layer's parameters are a matrix [O, I] with the bias as its last column, and its block treats such matrices; log
dets and linearised covariances are sums over layers, and draws are made layer by layer.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from meta_exp.adaptation import Params
from meta_exp.curvature.base import Posterior
from meta_exp.curvature.rows import Block, identity_directions, jacobian_rows, squares, to_matrix, to_params
from meta_exp.curvature.taps import Taps


class LayerPrecision(ABC):
    """One layer's block of H, of which it holds tau as a float64 tensor."""

    @abstractmethod
    def log_det_ratio(self) -> Tensor:
        """Log det of the block less that of tau I, in float64."""

    @abstractmethod
    def sample(self, z: Tensor) -> Tensor:
        """Return a draw [O, I] from N(0, block^-1), linear in the standard normal z [O, I]."""

    @abstractmethod
    def variance(self, rows: Block, outputs: int) -> Tensor:
        """Covariances [M, outputs, outputs] of the inner products with the layer's rows at M points, in float64."""

    @abstractmethod
    def multiply(self, v: Tensor) -> Tensor:
        """Return the block's product with v [..., O, I], in float64."""

    @abstractmethod
    def solve(self, v: Tensor) -> Tensor:
        """Return the block's inverse times v [..., O, I], in float64; its first derivatives are right."""


@dataclass(frozen=True)
class DiagonalPrecision(LayerPrecision):
    """tau I + diag(d), with ``d`` >= 0 of shape [O, I] in float64."""

    d: Tensor
    tau: Tensor

    def log_det_ratio(self) -> Tensor:
        """Sum of log(1 + d / tau)."""
        return (self.d / self.tau).log1p().sum()

    def sample(self, z: Tensor) -> Tensor:
        """Return a draw [O, I], z / sqrt(d + tau)."""
        return z * (self.d + self.tau).rsqrt().to(z.dtype)

    def variance(self, rows: Block, outputs: int) -> Tensor:
        """Inner products of the rows weighted by 1 / (d + tau)."""
        scaled = rows.dense().double() * (self.d + self.tau).rsqrt()
        return squares(scaled.flatten(1), outputs)

    def multiply(self, v: Tensor) -> Tensor:
        """Return (d + tau) v."""
        return (self.d + self.tau) * v

    def solve(self, v: Tensor) -> Tensor:
        """Return v / (d + tau)."""
        return v / (self.d + self.tau)


class LayerwisePosterior(Posterior):
    """N(theta_i, H^-1) with one ``LayerPrecision`` a layer."""

    def __init__(self, precisions: Mapping[str, LayerPrecision], taps: Taps, params: Params) -> None:
        self.precisions, self.taps, self.params = precisions, taps, params

    def log_det_ratio(self) -> Tensor:
        """Log det H - P log tau >= 0, in float64."""
        return torch.stack([block.log_det_ratio() for block in self.precisions.values()]).sum()

    def sample(self, noise: Params) -> Params:
        """Return one draw of phi - theta_i, exact; vmap over ``noise`` for more."""
        delta: Params = {}
        for name, block in self.precisions.items():
            layer = self.taps.layers[name]
            delta |= to_params(layer, name, block.sample(to_matrix(layer, noise, name)))
        return delta

    def functional_variance(self, x: Tensor) -> Tensor:
        """Covariances [M, C, C] of the linearised outputs at x [M, *features], in float64."""
        _, rows = jacobian_rows(self.taps, self.params, x, identity_directions)
        variances = [block.variance(rows[name], self.taps.outputs) for name, block in self.precisions.items()]
        return torch.stack(variances).sum(0)
