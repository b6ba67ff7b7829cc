r"""Conformal prediction over tasks: intervals and sets whose coverage holds whatever the predictive is worth.

A score says how far a target is from what was predicted: for a number |y - mean| / std, for a class 1 - p_y. Of K
calibration tasks with n scores each, the threshold is

    q(level) = the ceil(level (K + 1) n)-th smallest of the K n scores, infinite where there are fewer

so that the interval is mean +- q std and the set all classes with 1 - p_c <= q. The mass 1 / (K + 1) of the task that
is to come is put at infinity (Lee, Barber and Willett, 2023, hierarchical conformal prediction).

What it guarantees: let K + 1 tasks be exchangeable, and the points of each among themselves. Points of one task may
depend on each other as they like. Then for one point of the task that is not among the K

    level <= P(score <= q(level)) <= level + 1 / (K + 1) + 1 / ((K + 1) n)    (the upper bound without ties),

on average over tasks, points and calibration sets. It is not a statement about one task, nor about one place x, nor
about all points of a task at once; with one calibration set, coverage scatters around it (``deviation``). Exchangeable
are tasks that come from one distribution and played no part in training, choice of the checkpoint or calibration.

    conformal_coverage_q    share of a task's dimensions inside the interval, or of its points whose class is in the set
    conformal_width_q       mean width of its intervals, in the units of y
    conformal_size_q        mean number of classes in its sets, empty ones included
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

import torch
from torch import Tensor

from meta_exp.config.checks import require
from meta_exp.likelihoods.predictive import COVERAGE_LEVELS, ClassPredictive, NumberPredictive, Predictive

STEPS = 1000  # levels at which a threshold is kept


def residual_scores(mean: Tensor, std: Tensor, y: Tensor) -> Tensor:
    """Return |y - mean| / std, of the shape of all three."""
    return (y - mean).abs() / std


def class_scores(probabilities: Tensor) -> Tensor:
    """Return 1 - p_c of each class [..., C] for probabilities [..., C].

    It is the sum over the other classes: where p_c rounds to 1 points would tie, and be covered too often.
    """
    others = 1 - torch.eye(probabilities.shape[-1], dtype=torch.double, device=probabilities.device)
    return probabilities.double() @ others


def nonconformity(predictive: Predictive, y: Tensor) -> Tensor:
    """Return the scores of one task's targets, one for each point, [M], or for each dimension of each, [M d]."""
    if isinstance(predictive, ClassPredictive):
        return class_scores(predictive.probabilities).gather(-1, y[:, None])[:, 0]
    assert isinstance(predictive, NumberPredictive)
    return residual_scores(predictive.mean, predictive.variance.sqrt(), y).flatten()


@dataclass(frozen=True)
class Conformal:
    """Thresholds at the levels 1/1000, 2/1000, ..., of ``tasks`` tasks with ``points`` scores each: for JSON.

    They end where they are infinite. A level between two is rounded up, which adds less than 0.001 to its coverage.
    """

    tasks: int
    points: int
    thresholds: Sequence[float]

    def threshold(self, level: float) -> float:
        """Return the score that a new point stays below with probability ``level``; infinite where tasks are too few.

        Raises:
            ValueError: unless 0 < level < 1.
        """
        require(0 < level < 1, "level", "a probability between 0 and 1", level)
        step = ceil(level * STEPS - 1e-9)  # level is a decimal that float64 rounds
        return self.thresholds[step - 1] if step <= len(self.thresholds) else inf

    def interval(self, mean: Tensor, std: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """Return the lower and upper end, of the shape of ``mean`` and ``std``; infinite where the threshold is."""
        width = self.threshold(level) * std
        return mean - width, mean + width

    def prediction_set(self, probabilities: Tensor, level: float, empty: bool = False) -> Tensor:
        """Return which classes are in the set, booleans of the shape [..., C] of the probabilities.

        The likeliest class is always in it, so that coverage is at least the accuracy, however low the level. With
        ``empty`` it need not be, and coverage is the level.
        """
        inside = class_scores(probabilities) <= self.threshold(level)
        likeliest = torch.nn.functional.one_hot(probabilities.argmax(-1), probabilities.shape[-1]).bool()
        return inside if empty else inside | likeliest

    def scores(self, predictive: Predictive, y: Tensor) -> dict[str, Tensor]:
        """Return one task's coverage and width, or set size, at each of ``COVERAGE_LEVELS``."""
        score = nonconformity(predictive, y)
        found: dict[str, Tensor] = {}
        for q in COVERAGE_LEVELS:
            found[f"conformal_coverage_{q}"] = (score <= self.threshold(q / 100)).double().mean()
            if isinstance(predictive, ClassPredictive):
                inside = self.prediction_set(predictive.probabilities, q / 100, empty=True)
                found[f"conformal_size_{q}"] = inside.double().sum(-1).mean()
            elif isinstance(predictive, NumberPredictive):
                low, high = self.interval(predictive.mean, predictive.variance.sqrt(), q / 100)
                found[f"conformal_width_{q}"] = (high - low).mean()
        return found


def fit(scores: Tensor) -> Conformal:
    """Return the thresholds of calibration scores [tasks, points]; NaN, of a task that failed, counts as infinite."""
    tasks, points = scores.shape
    ascending = scores[scores.isfinite()].double().sort().values.tolist()
    ranks = (-(-step * (tasks + 1) * points // STEPS) for step in range(1, STEPS))
    return Conformal(tasks, points, [ascending[rank - 1] for rank in ranks if rank <= len(ascending)])


def deviation(scores: Tensor, level: float) -> float:
    """Return the standard deviation of coverage over calibration sets as large as this one, scores [tasks, points].

    To first order it is that of the share of a task's points below the threshold, over the root of the tasks: points
    that depend on each other count as fewer. Coverage that is measured on T tasks scatters by sqrt(1 + tasks / T) times
    as much.
    """
    covered = (scores <= fit(scores).threshold(level)).double().mean(1)
    return float(covered.std() / len(scores) ** 0.5)
