r"""The mode of a last layer over classes, whose logits have one kernel for all classes and none between them.

    K = I_C (x) k,    k = [a; 1] [a; 1]^T / tau  of the N support points' features a, N x N

With p = softmax f, W = D - Pi Pi^T has C diagonal blocks D_c = diag p_c and is of rank N short of them, Pi = D R with
R = 1_C (x) I_N. That leaves C factors of N x N, and one more, in place of one of N C x N C (Rasmussen and Williams
2006, algorithm 3.3; Q and log det by the matrix inversion lemma):

    B_c = I + D_c^1/2 k D_c^1/2,    E_c = D_c^1/2 B_c^-1 D_c^1/2,    E = blockdiag E_c
    Q = (K + W^-1)^-1 = E - E R (sum_c E_c)^-1 R^T E
    log det (I + K W) = sum_c log det B_c + log det sum_c E_c

Every B_c >= I, whatever the rank of k and however sure p is: nothing is inverted that could be singular.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from meta_exp.adaptation import Params
from meta_exp.curvature.base import Posterior
from meta_exp.curvature.mode import DualNoise
from meta_exp.curvature.newton import Solver, find_mode
from meta_exp.curvature.rows import to_matrix, to_params
from meta_exp.curvature.spectrum import solve
from meta_exp.likelihoods import Likelihood
from meta_exp.tasks.episode import Examples

OutputsFeatures = tuple[Tensor, Tensor]
Features = Callable[[Tensor], OutputsFeatures]  # of outputs [N, C] at x, and of the last layer's inputs [N, I]


class ClassSolver(Solver):
    """By C factors of N x N, for a ``kernel`` k [N, N] that all classes share, at logits [N, C]."""

    def __init__(self, kernel: Tensor, logits: Tensor) -> None:
        self.kernel = kernel
        # exp(log p / 2), because the derivative of sqrt(softmax) is not finite at large gaps between logits
        root = (logits.log_softmax(-1) / 2).exp().T
        eye = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
        # cholesky_ex: values that are not finite go through to the objective, whose guard names the remedy
        self.factors = torch.linalg.cholesky_ex(eye + root[:, :, None] * kernel * root[:, None, :]).L
        self.half = torch.linalg.solve_triangular(self.factors, torch.diag_embed(root), upper=False)
        self.blocks = self.half.mT @ self.half  # E_c
        self.total = torch.linalg.cholesky_ex(self.blocks.sum(0)).L

    def apply(self, v: Tensor) -> Tensor:
        """Return E v - E R (sum_c E_c)^-1 R^T E v for v [N C, k]."""
        by_class = v.unflatten(0, (len(self.kernel), -1)).transpose(0, 1)
        each = self.blocks @ by_class
        shared = solve(self.total, each.sum(0))
        return (each - self.blocks @ shared).transpose(0, 1).flatten(0, 1)

    def explained(self, cross: Tensor) -> tuple[Tensor, Tensor]:
        """Return what makes up K* Q K*^T for M points of covariances ``cross`` [M, N] with the support set.

        Returns:
            V and U [C, N, M]: of points m, m' and classes c, d it is [c = d] V_cm . V_cm' - U_cm . U_dm'.
        """
        v = self.half @ cross.T
        return v, torch.linalg.solve_triangular(self.total, self.half.mT @ v, upper=False)

    def draw(self, v: Tensor, xi: Tensor) -> Tensor:
        """Return S M^-1 (S^T v + xi) = S xi + Q (v - K S xi), given S xi in place of ``xi``, both [N C]."""
        spread = (self.kernel @ xi.view(len(self.kernel), -1)).flatten()
        return xi + self.apply((v - spread)[:, None])[:, 0]

    def log_det(self) -> Tensor:
        """Return sum_c log det B_c + log det sum_c E_c."""
        each, total = (factor.diagonal(dim1=-2, dim2=-1).log().sum() for factor in (self.factors, self.total))
        return 2 * (each + total)


class ClassPosterior(Posterior):
    """N(theta*, H^-1) over the last layer.

    Args:
        likelihood: of the targets.
        data: the support set.
        tau: the prior precision.
        name: of the layer.
        layer: the last one.
        features: of the network before it.
        params: theta_i.
        prior_mean: theta.
    """

    at_mode = True

    def __init__(
        self,
        likelihood: Likelihood,
        data: Examples,
        tau: Tensor,
        name: str,
        layer: nn.Module,
        features: Features,
        params: Params,
        prior_mean: Params,
    ) -> None:
        self.tau, self.name, self.layer, self.features = tau.double(), name, layer, features
        self.likelihood = likelihood
        outputs, self.support = features(data.x)
        names = [f"{name}.{p}" for p, _ in layer.named_parameters()]
        # without inner steps theta_i is theta itself, and there is no way back to add
        still = all(params[n] is prior_mean[n] for n in names)
        moved = {} if still else {n: params[n] - prior_mean[n] for n in names}
        self.way = to_matrix(layer, moved, name) if moved else None
        kernel = self._kernel(self.support)

        def multiply(v: Tensor) -> Tensor:
            return (kernel @ v.view(len(kernel), -1)).view_as(v)

        def solver(logits: Tensor) -> ClassSolver:
            return ClassSolver(kernel, logits)

        self.found = find_mode(likelihood, self._at_prior_mean(outputs, self.support), data.y, multiply, solver)

    def _kernel(self, features: Tensor) -> Tensor:
        """Return the prior's covariances, for each class, of points of these ``features`` with the support set."""
        return features.double() @ self.support.double().T / self.tau

    def _at_prior_mean(self, outputs: Tensor, features: Tensor) -> Tensor:
        """Return the logits that the last layer of theta gives, in float64."""
        return outputs.double() if self.way is None else outputs.double() - (features @ self.way.T).double()

    def log_det_ratio(self) -> Tensor:
        """Log det H - P log tau >= 0, in float64."""
        return self.found.solver.log_det()

    def mode(self) -> Params:
        """Return theta* - theta_i."""
        matrix = (self.found.a.T @ self.support.double() / self.tau).to(self.support.dtype)
        return to_params(self.layer, self.name, matrix if self.way is None else matrix - self.way)

    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return mean [M, C] and covariance [M, C, C], or ``joint`` [M C, M C], of the logits at x."""
        outputs, features = self.features(x)
        cross = self._kernel(features)
        mean = self._at_prior_mean(outputs, features) + cross @ self.found.a
        v, u = self.found.solver.explained(cross)
        points, eye = features.double(), torch.eye(outputs.shape[1], dtype=cross.dtype, device=cross.device)
        if joint:
            own = points @ points.T / self.tau - v.mT @ v
            covariance = torch.einsum("cmp,cd->mcpd", own, eye) + torch.einsum("cnm,dnp->mcpd", u, u)
            return mean, covariance.flatten(2, 3).flatten(0, 1)
        own = points.square().sum(1) / self.tau - v.square().sum(1)
        return mean, torch.diag_embed(own.T) + torch.einsum("cnm,dnm->mcd", u, u)

    def functional_variance(self, x: Tensor) -> Tensor:
        """Covariances [M, C, C] of the linearised outputs at x [M, *features], in float64."""
        return self.moments(x)[1]

    def sample(self, noise: DualNoise) -> Params:
        """Return one draw of phi - theta_i, exact; vmap over ``noise`` for more."""
        w = to_matrix(self.layer, noise.prior, self.name) / self.tau.to(self.support.dtype).sqrt()
        root = self.likelihood.hessian_sqrt(self.found.f)
        xi = torch.einsum("ncq,nq->nc", root, noise.data.double().view(len(root), -1)).flatten()
        weights = self.found.solver.draw((self.support @ w.T).double().flatten(), xi).view(len(root), -1) / self.tau
        update = w - (weights.T @ self.support.double()).to(w.dtype)
        mode = self.mode()
        return {name: value + mode[name] for name, value in to_params(self.layer, self.name, update).items()}
