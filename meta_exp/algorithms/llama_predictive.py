r"""LLAMA trained through what it serves: the posterior predictive of the query set, in the linear model at its mode.

    objective_i(theta) = -log integral p(Q_i | phi) N(phi; theta*, H_i^-1) dphi / M

theta* and H_i are those of the model that is linear at theta_i (``curvature.mode``), in which the integral has a closed
form: for a Gaussian likelihood that of N(y; f + J (theta* - theta_i), J H^-1 J^T + sigma^2 I), for classes its
mean-field approximation. It takes the place of eq. 4's point mass at theta_i. sigma, tau and whatever else likelihood
and curvature learn are learned with it, since over- and underconfidence both cost; no eta weights anything.

The default is a query point at a time, the density that metrics call NLL; ``joint`` takes the queries of a task
together, and its determinant part is (log det H(S and Q) - log det H(S)) / 2: the ratio of evidences p(S and Q) / p(S).

Without inner steps theta_i is theta, and one Jacobian is trained to serve all tasks: with ``curvature=last_layer`` that
is ALPaCA (Harrison, Sharma and Pavone 2018) for regression, and a Bayesian relative of LR-D2 (Bertinetto, Henriques,
Torr and Vedaldi 2019) for classes; with ``ggn`` it is UnLiMiTD (Almecija, Sharma and Azizan 2022).
"""

from dataclasses import dataclass

from torch import Tensor

from meta_exp.adaptation import Meta, Params
from meta_exp.algorithms.base import Logs
from meta_exp.algorithms.maml import MAML
from meta_exp.config.checks import require
from meta_exp.curvature import Curvature
from meta_exp.hyper import Learned
from meta_exp.tasks.episode import Episode


@dataclass(frozen=True, kw_only=True)
class LLAMAPredictive(MAML):
    """The posterior predictive's -log density of a task's queries; ``joint`` of all of them together."""

    curvature: Curvature
    inner_steps: int = 0
    mode: bool = True
    joint: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no predictive to train through."""
        key, remedy = "algorithm=llama_predictive", "choose curvature=ggn, last_layer, kfac or diagonal"
        require(self.curvature is not None, key, "a curvature", "curvature=none", remedy)
        super().__post_init__()
        remedy = "choose likelihood=gaussian or probit"
        require(self.likelihood.closed_form, key, "a predictive in closed form", type(self.likelihood).__name__, remedy)
        joint = not self.joint or self.likelihood.quadratic
        require(joint, "algorithm.joint=true", "likelihood=gaussian", type(self.likelihood).__name__, "set it to false")

    def hyperparameters(self) -> dict[str, Learned]:
        """Return what is learned beside theta: what likelihood and curvature learn."""
        return self.likelihood.hyperparameters() | self.curvature.hyperparameters()

    @property
    def validated(self) -> tuple[str, ...]:
        """The predictive that is trained and served too: the point prediction hardly knows which network is better."""
        return ("map", "linearized")

    def objective(self, path: list[Params], episode: Episode, meta: Meta) -> tuple[Tensor, Logs]:
        """Return the objective, and the log det."""
        posterior = self.posterior(path[-1], episode.support, meta)
        assert posterior is not None
        likelihood = self.likelihood.at(meta.hyper)
        query = episode.query
        mean, covariance = posterior.moments(query.x, self.joint)
        if self.joint:  # one point of M d dimensions
            predictive = likelihood.predictive(mean.view(1, 1, -1), covariance[None])
            log_density = predictive.log_prob(query.y.view(1, -1)).sum()
        else:
            log_density = likelihood.predictive(mean[None], covariance).log_prob(query.y).sum()
        return -log_density.to(query.x.dtype) / len(query.y), {"log_det": posterior.log_det_ratio().to(query.x.dtype)}
