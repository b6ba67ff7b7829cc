r"""LLAMA (Grant, Finn, Levine, Darrell, Griffiths 2018): MAML with Laplace's approximation of a task's evidence.

    objective_i(theta) = [ -log p(Q_i | theta_i) + eta log det(H_i / tau) + prior_i ] / M
    H_i = tau I + curvature of -log p(data_i | phi) at phi = theta_i
    prior_i = tau / 2 ||theta_i - theta||^2                with ``prior_term``, else 0

H_i and the prior are over the parameters that the curvature treats; any others are taken as known.
The log det is added: flat adapted points are preferred. Its gradient reaches theta through theta_i. It is taken
relative to the prior's, P log tau, which is a constant, or with the prior term cancels its normalisation. With eta =
1/2 and the prior term the objective is then the whole of Laplace's -log evidence of the data, where H_i and -log p take
the same set and theta_i is the mode of its posterior; with few inner steps, or support and query apart, it has the form
and not the value. eta = 0 is MAML.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from meta_exp.adaptation import Meta, Params
from meta_exp.algorithms.base import HEAVIEST, Logs
from meta_exp.algorithms.maml import MAML
from meta_exp.config.checks import require, require_at_most
from meta_exp.curvature import Curvature
from meta_exp.hyper import Learned
from meta_exp.tasks.episode import Episode, Examples


@dataclass(frozen=True, kw_only=True)
class LLAMA(MAML):
    """MAML plus ``eta`` times the log det of the curvature on the ``data`` of the task.

    ``eta`` is the curvature's own default if it is None.
    """

    curvature: Curvature
    eta: float | None = None
    data: Literal["support", "query"] = "support"
    prior_term: bool = False

    def __post_init__(self) -> None:
        """Refuse a missing curvature, a negative weight, and a tau that nothing would hold back."""
        remedy = "choose curvature=ggn, kfac, diagonal or last_layer, or algorithm=maml"
        require(self.curvature is not None, "algorithm=llama", "a curvature", "curvature=none", remedy)
        super().__post_init__()
        require(self.weight >= 0, "algorithm.eta", "a weight >= 0", self.eta)
        require_at_most(HEAVIEST, "algorithm.eta", self.weight)
        require(self.data in ("support", "query"), "algorithm.data", "support or query", self.data)
        if self.curvature.learned:
            remedy = "without it tau grows without bound"
            require(self.prior_term, "curvature.learned=true", "algorithm.prior_term=true", "false", remedy)
            remedy = "without the log det tau falls to nothing"
            require(self.weight > 0, "curvature.learned=true", "algorithm.eta > 0", self.weight, remedy)

    @property
    def weight(self) -> float:
        """Eta, given or the curvature's default."""
        return self.curvature.default_eta if self.eta is None else self.eta

    def curved(self, episode: Episode) -> Examples:
        """Return the support or query set, as ``data`` says."""
        return episode.support if self.data == "support" else episode.query

    @property
    def holds_to_theta(self) -> bool:
        """Whether there is a prior term."""
        return self.prior_term

    def hyperparameters(self) -> dict[str, Learned]:
        """Return what is learned beside theta: sigma and tau, if asked."""
        return self.likelihood.hyperparameters() | self.curvature.hyperparameters()

    def objective(self, path: list[Params], episode: Episode, meta: Meta) -> tuple[Tensor, Logs]:
        """Return the objective at theta_i, and the log det."""
        theta_i = path[-1]
        posterior = self.posterior(theta_i, self.curved(episode), meta)
        assert posterior is not None
        nll = self.query_nll(theta_i, posterior, episode, meta)
        log_det = posterior.log_det_ratio().to(nll.dtype)
        total = nll + self.weight * log_det
        if self.prior_term:
            way = posterior.mode() or {}
            centre = theta_i | {name: theta_i[name] + value for name, value in way.items()}
            total = total + self.curvature.prior_term(centre, meta.theta, meta.hyper)
        return total / len(episode.query.y), {"log_det": log_det}
