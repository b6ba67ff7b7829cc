r"""Classification: y ~ Categorical(softmax f).

nll = -sum_n log softmax(f_n)[y_n],    Lambda_n = diag(p) - p p^T
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from meta_exp.config.checks import require, require_within
from meta_exp.hyper import Hyper, Learned, in_log_space
from meta_exp.likelihoods.base import Likelihood
from meta_exp.likelihoods.predictive import ClassPredictive, joined

TEMPERATURE = 1e-6, 1e6


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Classification: outputs are C logits, targets are integers 0 .. C-1.

    ``temperature`` T > 0 multiplies the logits of predictions, and of nothing else.
    """

    temperature: float | Tensor = 1.0

    targets = "classes"
    metric = "accuracy"
    softmax = True

    def __post_init__(self) -> None:
        """Refuse a temperature that is not positive."""
        if not isinstance(self.temperature, Tensor):
            require(self.temperature > 0, "likelihood.temperature", "a number > 0", self.temperature)
            require_within(TEMPERATURE, "likelihood.temperature", self.temperature)

    def free(self) -> dict[str, Learned]:
        """Return what may be fitted after training to what is served: the temperature."""
        return in_log_space("temperature", self.temperature)

    def at(self, hyper: Hyper) -> Self:
        """Return this likelihood with the temperature that ``hyper`` holds, if any."""
        return replace(self, temperature=hyper["log_temperature"].exp()) if "log_temperature" in hyper else self

    def outputs_for(self, dimensions: int) -> int:
        """A logit for each class."""
        return dimensions

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of logits [N, C], the inner loop's loss."""
        return F.cross_entropy(outputs, y)

    def nll(self, outputs: Tensor, y: Tensor) -> Tensor:
        """-log p(y | f), summed over the N points."""
        return F.cross_entropy(outputs, y, reduction="sum")

    def nll_per_loss(self, points: int, dimensions: int) -> float:
        """Return the change of ``nll`` by that of ``loss``, a mean over N points, for any number of classes."""
        return points

    def pull(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return d log p(y | f) / df [N, C] = [y = c] - p_c."""
        # F.one_hot looks at y's values, which vmap around a derivative does not allow
        truth = y[:, None] == torch.arange(outputs.shape[-1], device=y.device)
        return truth.to(outputs) - outputs.softmax(-1)

    def hessian_sqrt(self, outputs: Tensor) -> Tensor:
        """S [N, C, C-1] with S_n S_n^T = Lambda_n = diag(p) - p p^T.

        S = diag(s) - p s^T with s = sqrt(p) has the null direction s, which varies with p, on its right. A Householder
        reflection that sends s to a coordinate axis turns that into a zero column, and it is dropped: C - 1 backward
        passes a point instead of C.
        """
        # exp(log p / 2), because the derivative of sqrt(softmax) is not finite at large gaps between logits
        root = (outputs.log_softmax(-1) / 2).exp()
        p = root * root
        full = torch.diag_embed(root) - p[..., :, None] * root[..., None, :]
        # s has norm 1 and positive entries, so s + e_last is never near zero
        v = root + torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)[-1]
        reflected = full - (full @ v[..., :, None]) * (v / (1 + root[..., -1:]))[..., None, :]
        return reflected[..., :-1]

    def weigh(self, outputs: Tensor, v: Tensor) -> Tensor:
        """Return (diag(p) - p p^T) v."""
        p = outputs.softmax(-1)
        return p * (v - (p * v).sum(-1, keepdim=True))

    def rank(self, outputs: int) -> int:
        """Columns of each S_n: the logits' common shift carries no information."""
        return outputs - 1

    def predictive(self, outputs: Tensor, covariance: Tensor) -> "CategoricalPredictive":
        """Return the mixture over S draws of logits [S, M, C], which carry their spread themselves."""
        return CategoricalPredictive(_scaled(self.temperature, outputs))


def _scaled(temperature: float | Tensor, logits: Tensor) -> Tensor:
    return temperature.to(logits) * logits if isinstance(temperature, Tensor) else temperature * logits


class CategoricalPredictive(ClassPredictive):
    """The averaged probabilities of S draws of logits [S, M, C]."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    @property
    def probabilities(self) -> Tensor:
        """Averaged probabilities [M, C]."""
        return self.logits.softmax(-1).mean(0)

    @property
    def log_probabilities(self) -> Tensor:
        """Log of the averaged probabilities [M, C], finite where these are 0 in float32."""
        return self.logits.log_softmax(-1).logsumexp(0) - log(len(self.logits))

    def given(self, classes: int) -> Self:
        """Return the predictive given that y is one of the first ``classes``, in each draw."""
        return type(self)(self.logits[..., :classes])

    @classmethod
    def mixed(cls, members: Sequence[Self]) -> Self:
        """Return the equal mixture of ``members``."""
        return cls(joined([member.logits for member in members]))

    def log_prob(self, y: Tensor) -> Tensor:
        """Log of the averaged probability [M] of the class y [M]."""
        chosen = self.logits.log_softmax(-1).gather(-1, y.expand(len(self.logits), -1)[..., None])[..., 0]
        return chosen.logsumexp(0) - log(len(self.logits))
