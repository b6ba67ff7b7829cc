r"""The predictive distribution of y at M points, observation noise included: an equal mixture over S draws.

Every score is a function of one task's M points, so that it vmaps over tasks; what is pooled over the points of all
tasks is a histogram, so that memory does not grow with their number. p is the averaged class probability, F the
predictive distribution function of one dimension of y.

    brier       mean over points of sum_c (p_c - [y = c])^2, in [0, 2]
    crps        mean of integral (F(t) - [y <= t])^2 dt, in the units of y; for a point mass, the absolute error
    coverage_q  share of dimensions inside the predictive's central q % interval

Every score of a point that has no prediction, NaN in place of numbers, is NaN itself: a task that adaptation has failed
on is no task with a wrong answer.

Draws are averaged in the space of probabilities, never in that of outputs, and the NLL is that of the mixture: the log
of the mean over draws, never the mean of the draws' NLLs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import lcm, log
from typing import ClassVar, Self

import torch
from torch import Tensor

from meta_exp.config.checks import require

COVERAGE_LEVELS = (50, 80, 90, 95)  # percent
CONFIDENCE_BINS = 15
UNCERTAINTY_BINS = 20
BISECTIONS = 40


class Predictive(ABC):
    """p(y | x, support) at M points.

    Attributes:
        metric: the name of ``score``.
    """

    metric: ClassVar[str]

    @abstractmethod
    def log_prob(self, y: Tensor) -> Tensor:
        """Log density or probability [M] of the targets y."""

    def fitted_nll(self, y: Tensor, points: int) -> Tensor:
        """What a calibration by so many ``points`` makes small, a mean over the M of y: -log p(y)."""
        return -self.log_prob(y).double().mean()

    @abstractmethod
    def score(self, y: Tensor) -> Tensor:
        """The metric [M] of each point."""

    @abstractmethod
    def uncertainty(self) -> Tensor:
        """What flags a foreign point, [M]."""

    @abstractmethod
    def scores(self, y: Tensor) -> dict[str, Tensor]:
        """Return a task's scores, scalars: its metric, nll, and those of its kind of target."""

    @abstractmethod
    def histograms(self, y: Tensor) -> dict[str, Tensor]:
        """Return what is added up over tasks, in float64."""

    @classmethod
    def mixed(cls, members: Sequence[Self]) -> "Predictive":
        """Return the equal mixture of predictives at the same points, whatever their numbers of draws.

        Raises:
            ValueError: predictives of this class do not say how they mix.
        """
        require(False, "ensemble=true", "predictives that mix", cls.__name__, f"give {cls.__name__} a method mixed")
        raise AssertionError


class ClassPredictive(Predictive):
    """A distribution over C classes."""

    metric = "accuracy"

    @property
    @abstractmethod
    def probabilities(self) -> Tensor:
        """Class probabilities [M, C], averaged over the draws."""

    @property
    def log_probabilities(self) -> Tensor:
        """Log of the probabilities [M, C]."""
        return self.probabilities.log()

    @abstractmethod
    def given(self, classes: int) -> Self:
        """Return the predictive of y given that it is one of the first ``classes``."""

    def fitted_nll(self, y: Tensor, points: int) -> Tensor:
        """-log p(y), and that of one point more, which is of any class: Laplace's rule of succession.

        Without it tasks that are all answered rightly ask for a temperature without end, and the first error among
        others then costs more than all of them gained.
        """
        return super().fitted_nll(y, points) - self.log_probabilities.double().mean() / points

    @property
    def entropy(self) -> Tensor:
        """Entropy [M] of the probabilities in nats."""
        return torch.special.entr(self.probabilities).sum(-1)

    def score(self, y: Tensor) -> Tensor:
        """1 where the class of the highest averaged probability is y, else 0; [M]."""
        p = self.probabilities
        return (p.argmax(-1) == y).to(p.dtype).masked_fill(p.isnan().any(-1), torch.nan)

    def uncertainty(self) -> Tensor:
        """The entropy over log C, in [0, 1]; [M]."""
        return self.entropy / log(self.probabilities.shape[-1])

    def scores(self, y: Tensor) -> dict[str, Tensor]:
        """Return accuracy, nll and brier."""
        p = self.probabilities
        truth = torch.nn.functional.one_hot(y, p.shape[-1]).to(p)
        brier = ((p - truth) ** 2).sum(-1).mean()
        return {self.metric: self.score(y).mean(), "nll": -self.log_prob(y).mean(), "brier": brier}

    def histograms(self, y: Tensor) -> dict[str, Tensor]:
        """Return ``reliability`` [3, 15]: points, summed confidence and right answers in bins of confidence."""
        confidence, answer = self.probabilities.max(-1)
        bins = one_hot_bins(confidence, CONFIDENCE_BINS)
        parts = torch.stack([torch.ones_like(confidence), confidence, (answer == y).to(confidence)])
        return {"reliability": parts.double() @ bins}


class NumberPredictive(Predictive):
    """A distribution over y of d dimensions, real numbers or counts."""

    metric = "mse"

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Mean of y, [M, d]."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """Variance of each dimension of y, [M, d]."""

    @abstractmethod
    def cdf(self, y: Tensor) -> Tensor:
        """F(y) = P(Y <= y) of each dimension, [M, d]."""

    @abstractmethod
    def quantile(self, q: float) -> Tensor:
        """The least y with F(y) >= q, [M, d]; not under vmap."""

    @abstractmethod
    def crps(self, y: Tensor) -> Tensor:
        """Continuous ranked probability score [M, d]."""

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Lower and upper end [M, d] of the central interval that holds y with probability ``level``."""
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def pit(self, y: Tensor) -> Tensor:
        """F(y) [M, d], which is uniform where the predictive is calibrated."""
        return self.cdf(y)

    def covered(self, y: Tensor, levels: Sequence[float]) -> list[Tensor]:
        """For each level whether y lies inside its central interval, [M, d]."""
        off_centre = (self.cdf(y) - 0.5).abs()
        return [off_centre <= level / 2 for level in levels]

    def score(self, y: Tensor) -> Tensor:
        """Squared error [M] of the mixture's mean, averaged over the d dimensions."""
        return ((self.mean - y) ** 2).mean(-1)

    def uncertainty(self) -> Tensor:
        """The variance [M], summed over dimensions."""
        return self.variance.sum(-1)

    def coverage(self, y: Tensor) -> dict[str, Tensor]:
        """Return ``coverage_q`` for each of ``COVERAGE_LEVELS``."""
        inside = torch.stack(self.covered(y, [q / 100 for q in COVERAGE_LEVELS])).to(y.dtype)
        inside = inside.masked_fill(self.pit(y).isnan(), torch.nan)
        return {f"coverage_{q}": hit.mean() for q, hit in zip(COVERAGE_LEVELS, inside, strict=True)}

    def scores(self, y: Tensor) -> dict[str, Tensor]:
        """Return mse, nll, crps and coverages."""
        scores = {self.metric: self.score(y).mean(), "nll": -self.log_prob(y).mean(), "crps": self.crps(y).mean()}
        return scores | self.coverage(y)

    def histograms(self, y: Tensor) -> dict[str, Tensor]:
        """Return ``pit`` [20]: dimensions of y by F(y), flat where the predictive is calibrated."""
        return {"pit": one_hot_bins(self.pit(y).flatten(), UNCERTAINTY_BINS).sum(0)}


def one_hot_bins(values: Tensor, bins: int) -> Tensor:
    """Return [K, bins] with a 1 in the bin of each of the values [K] in [0, 1], in float64; NaN falls in none."""
    edges = torch.linspace(0, 1, bins + 1, dtype=values.dtype, device=values.device)
    above = (values[:, None] >= edges[:-1]).double()
    return above - torch.cat([above[:, 1:], torch.zeros_like(above[:, :1])], 1)


def joined(draws: Sequence[Tensor]) -> Tensor:
    """Return the draws [S_e, ...] of several predictives in a row, those of each repeated to the same number."""
    most = lcm(*map(len, draws))
    return torch.cat([each.repeat(most // len(each), *[1] * (each.ndim - 1)) for each in draws])


def bisect(cdf: Callable[[Tensor], Tensor], q: float, low: Tensor, high: Tensor) -> Tensor:
    """Return where ``cdf`` passes q between ``low`` and ``high``, by bisection."""
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = cdf(middle) < q
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
