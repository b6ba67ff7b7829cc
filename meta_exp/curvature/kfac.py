r"""K-FAC ('expand'): a Kronecker product for each linear and convolutional layer, and a diagonal for scales and shifts.

    H_l = tau I + B (x) A                                  Linear, Conv2d
    A = mean over points and positions of [a; 1][a; 1]^T   a: inputs (patches) of the layer
    B = sum over points and positions of g g^T             g: output gradients along S_n, S_n S_n^T = Lambda_n
    H_l = tau I + diag(d)                                  Affine (scale and shift of a norm): diagonal of the GGN
    log det ratio = sum_ij log(1 + lambda_i(A) lambda_j(B) / tau)

Eigenvalues are those of the smaller Gram matrix: of A with at most N x positions, of B with at most passes x N x
positions. Draws and variances rotate to the eigenbases, thin ones, because H is tau on all that they leave out. The
product is the exact GGN block of a linear layer for one point, or where all points have the same output gradients, as
the last layer's are under a Gaussian.

Output gradients take one backward pass for each column of S_n, and N times as many where batch statistics couple the
points. ``probes`` takes that many passes in all, each along S_n r_n for random signs r_n: the mean of B and d over
signs is exact, in coupled networks too; the log det is concave in them, so that on average it lies below that of all
passes. Signs are read from a fixed table at an offset that the task's inputs give: they vary between tasks, so that
their errors average out in training and no direction of the outputs is left out for good; and for one task they are
constants, so that the objective stays a function of theta alone, whatever the step, chunk or device, and no random
generator runs inside vmap. That is for training: evaluation and production, where a task's variances would be off by a
factor of two either way, take all passes (``exact``).
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meta_exp.adaptation import Params
from meta_exp.config.checks import require, require_at_most
from meta_exp.curvature.base import Curvature
from meta_exp.curvature.layerwise import DiagonalPrecision, LayerPrecision, LayerwisePosterior
from meta_exp.curvature.layerwise_mode import LayerwiseModePosterior
from meta_exp.curvature.rows import Block, cotangents, layer_rows, patches, pull, squares, with_bias
from meta_exp.curvature.spectrum import eigenbasis, eigenvalues
from meta_exp.curvature.taps import Taps, layers_with_parameters
from meta_exp.hyper import Hyper
from meta_exp.likelihoods import Likelihood
from meta_exp.models.convolution import Conv2d
from meta_exp.models.norm import Affine
from meta_exp.tasks.episode import Examples

PROBES = 10**4  # at most
TABLE = 65521  # signs; a prime, so that offsets of tasks on a grid spread


@dataclass(frozen=True)
class KroneckerPrecision(LayerPrecision):
    """tau I + B (x) A with A = a^T a and B = b^T b, ``a`` [n, I], ``b`` [m, O].

    ``columns`` says in which column of ``a`` each column of the layer's matrix stands, where that is another. The log
    det is the same in any order.
    """

    a: Tensor
    b: Tensor
    tau: Tensor
    columns: Tensor | None = None

    def log_det_ratio(self) -> Tensor:
        """Sum of log(1 + lambda_A lambda_B / tau)."""
        products = eigenvalues(self.b)[:, None] * eigenvalues(self.a)
        return (products / self.tau).log1p().sum()

    def sample(self, z: Tensor) -> Tensor:
        """Return a draw [O, I]: z / sqrt(tau), and in the eigenbases U_B^T z U_A / sqrt(lambda_A lambda_B + tau)."""
        values, left, right = self._basis()
        scale = (1 + values).rsqrt() - 1
        correction = left @ (scale * (left.T @ z.double() @ right)) @ right.T
        return ((z + correction) * self.tau.rsqrt()).to(z.dtype)

    def variance(self, rows: Block, outputs: int) -> Tensor:
        """Covariances of the inner products: squares of what the eigenbases see and of the rest, no difference of two.

        A difference would lose a small variance, and its sign, where tau is next to nothing.
        """
        values, left, right = self._basis()
        dense = rows.dense().double()
        seen = left.T @ dense @ right
        rest = dense - left @ seen @ right.T
        scaled = seen * (1 + values).rsqrt()
        return (squares(scaled.flatten(1), outputs) + squares(rest.flatten(1), outputs)) / self.tau

    def multiply(self, v: Tensor) -> Tensor:
        """Return tau v + B v A."""
        a = (self.a if self.columns is None else self.a[:, self.columns]).double()
        b = self.b.double()
        return self.tau * v + b.T @ (b @ v @ a.T) @ a

    def solve(self, v: Tensor) -> Tensor:
        """Return the inverse times v by the eigenbases, held constant, and the derivative by a step of refinement."""
        values, left, right = (part.detach() for part in self._basis())
        scale, tau = values / (1 + values), self.tau.detach()

        def inverse(u: Tensor) -> Tensor:
            return (u - left @ (scale * (left.T @ u @ right)) @ right.T) / tau

        solved = inverse(v.detach())
        return solved + inverse(v - self.multiply(solved))

    def _basis(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues of B (x) A over tau, [K_B, K_A], and eigenvectors of B [O, K_B] and A [I, K_A]."""
        (of_b, left), (of_a, right) = eigenbasis(self.b), eigenbasis(self.a)
        right = right if self.columns is None else right[self.columns]
        return of_b[:, None] * of_a / self.tau, left, right


class KFAC(Curvature):
    """K-FAC of a network of Linear, Conv2d and Affine layers.

    Args:
        model: the network.
        input_shape: features of one input.
        prior_precision: tau > 0 of the prior N(theta, I / tau).
        learned: learn log tau with theta, which takes LLAMA's prior term.
        probes: backward passes for the output gradients in training; None for all of them, exact.
        seed: of the table of signs.
    """

    finds_mode = True
    default_eta = 0.01  # its log det is above the GGN's: 1.6 times on the sinusoid network at tau = 1000, more below

    def __init__(
        self,
        model: nn.Module,
        input_shape: Sequence[int],
        prior_precision: float = 1.0,
        learned: bool = False,
        probes: int | None = None,
        seed: int = 0,
    ) -> None:
        require(probes is None or probes >= 1, "curvature.probes", "null or at least 1", probes)
        require_at_most(PROBES, "curvature.probes", probes or 0)
        require(seed >= 0, "curvature.seed", "an integer >= 0", seed)
        super().__init__(Taps(model, input_shape, layers_with_parameters(model)), prior_precision, learned)
        self.probes = probes
        self.table = 2.0 * torch.randint(2, (TABLE,), generator=torch.Generator().manual_seed(seed)) - 1

    def posterior(
        self,
        params: Params,
        data: Examples,
        likelihood: Likelihood,
        hyper: Hyper,
        prior_mean: Params | None = None,
    ) -> LayerwisePosterior:
        """Return the posterior of one task around ``params``, or the mode, given its N examples."""
        outputs, inputs, pullback = self.taps.linearize(params, data.x)
        roots = likelihood.hessian_sqrt(outputs)
        coupled = self.taps.coupled
        if self.probes is None:
            along = cotangents(roots, coupled)
        else:
            signs = self.signs(data.x, roots.shape[-1]).to(roots.dtype)
            along = torch.einsum("nck,pnk->pnc", roots, signs) / self.probes**0.5
        gradients = pull(pullback, along)
        tau = self.tau(hyper).to(data.x.device).double()
        precisions: dict[str, LayerPrecision] = {}
        for name, layer in self.taps.layers.items():
            a, g = inputs[name], gradients[name]
            if isinstance(layer, Affine):
                precisions[name] = DiagonalPrecision(layer_rows(layer, a, g, coupled).column_squares(), tau)
            else:
                a, columns = _inputs(layer, a)
                precisions[name] = KroneckerPrecision(a / len(a) ** 0.5, _gradients(g), tau, columns)
        if prior_mean is not None:
            return LayerwiseModePosterior(precisions, self.taps, params, likelihood, data, tau, prior_mean)
        return LayerwisePosterior(precisions, self.taps, params)

    def exact(self) -> "KFAC":
        """Return the same with all backward passes: a task is used once, and no other makes up for its signs."""
        if self.probes is None:
            return self
        whole = copy(self)
        whole.probes = None
        return whole

    def signs(self, x: Tensor, rank: int) -> Tensor:
        """Return the task's signs [probes, N, rank], a function of its inputs alone."""
        shape = (self.probes or 1, len(x), rank)
        # the sum in float64 is the same on every device, up to rounding far below the unit of the offset
        offset = (1000 * x.double().sum()).long()
        index = torch.arange(shape[0] * shape[1] * shape[2], device=x.device)
        return self.table.to(x.device)[(index + offset) % TABLE].view(shape)


def _inputs(layer: nn.Module, a: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the inputs [n, I] of a layer at its points and positions, and the order of their columns if it is special.

    Patches that the layer has taken are left as they lie, channels last: to sort them takes longer than the product.
    """
    if isinstance(layer, Conv2d) and layer.prefers_patches(a):
        a = layer.patches(a).flatten(0, 2)
        columns = torch.arange(a[0].numel(), device=a.device).view(a.shape[1:]).T.flatten()
        columns = columns if layer.bias is None else torch.cat([columns, columns.new_tensor([len(columns)])])
        return with_bias(layer, a.flatten(1)), columns
    if isinstance(layer, nn.Conv2d):
        return patches(layer, a).mT.flatten(0, 1), None
    return with_bias(layer, a), None


def _gradients(g: Tensor) -> Tensor:
    """Return [m, O] whose Gram matrix is B, of g [passes, N, O, ...]."""
    return g.flatten(0, 1) if g.ndim == 3 else g.flatten(3).mT.flatten(0, 2)
