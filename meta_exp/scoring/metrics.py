r"""What one task's predictive is scored by: its metric and NLL, calibration, and knowing what is foreign to the task.

Every score is a function of one task's M query points, so that it vmaps over tasks; what is pooled over the points of
all tasks is a histogram, so that memory does not grow with their number. p is the averaged class probability, F the
predictive distribution function of one output, a mixture of S Gaussians with noise.

    brier       mean over points of sum_c (p_c - [y = c])^2, in [0, 2]
    ece         sum_b n_b / n |mean confidence - accuracy| over 15 equal bins of max_c p_c, pooled over points and tasks
    crps        mean of integral (F(t) - [y <= t])^2 dt, in the units of y; for a point mass, the absolute error
    coverage_q  share of outputs inside the predictive's central q % interval: |F(y) - 1/2| <= q / 200
    auroc       P(u_out > u_in) + P(u_out = u_in) / 2 for the uncertainty u of a point that is foreign to the task and
                of one that is not; 1/2 is blind. NaN for a task that has no points of one kind

u is the entropy of p, or the predictive variance. torchmetrics has the ECE and the AUROC for data in memory only, and
not under vmap; the tests hold ours against it.
"""

from math import log, pi, sqrt

import torch
from torch import Tensor

from meta_exp.likelihoods import Categorical, Gaussian, Likelihood
from meta_exp.prediction import Prediction

COVERAGE_LEVELS = (50, 80, 90, 95)  # percent
CONFIDENCE_BINS = 15
UNCERTAINTY_BINS = 20


def task_scores(prediction: Prediction, y: Tensor, likelihood: Likelihood) -> dict[str, Tensor]:
    """Return one predictive's scores of a task, scalars: its metric, nll, and brier or crps and coverages."""
    scores = {
        likelihood.metric: likelihood.score(prediction.outputs, y).mean(),
        "nll": -likelihood.log_predictive(*prediction, y).mean(),
    }
    if isinstance(likelihood, Categorical):
        return scores | {"brier": brier(class_probabilities(prediction), y)}
    means, variance = mixture(prediction, likelihood)
    off_centre = (mixture_cdf(means, variance, y) - 0.5).abs()
    coverage = {f"coverage_{q}": (off_centre <= q / 200).to(y.dtype).mean() for q in COVERAGE_LEVELS}
    return scores | {"crps": mixture_crps(means, variance, y).mean()} | coverage


def task_histograms(prediction: Prediction, y: Tensor, likelihood: Likelihood) -> dict[str, Tensor]:
    """Return what is added up over tasks, in float64.

    ``reliability`` [3, 15] for classes: points, summed confidence and right answers in bins of confidence; ``pit`` [20]
    for regression: outputs by F(y), flat where the predictive is calibrated.
    """
    if isinstance(likelihood, Categorical):
        confidence, answer = class_probabilities(prediction).max(-1)
        bins = one_hot_bins(confidence, CONFIDENCE_BINS)
        parts = torch.stack([torch.ones_like(confidence), confidence, (answer == y).to(confidence)])
        return {"reliability": parts.double() @ bins}
    levels = mixture_cdf(*mixture(prediction, likelihood), y)
    return {"pit": one_hot_bins(levels.flatten(), UNCERTAINTY_BINS).sum(0)}


def class_probabilities(prediction: Prediction) -> Tensor:
    """Average the probabilities, not the logits, of the S draws; [M, C]."""
    return prediction.outputs.softmax(-1).mean(0)


def mixture(prediction: Prediction, likelihood: Gaussian) -> tuple[Tensor, Tensor]:
    """Return means and variances, noise included, of the mixture's S components for each output; [S, M, d] both."""
    own = prediction.covariance.diagonal(dim1=-2, dim2=-1)
    variance = own + likelihood.variance.to(own)
    return prediction.outputs, variance.expand_as(prediction.outputs)


def uncertainty(prediction: Prediction, likelihood: Likelihood) -> Tensor:
    """Return what flags a foreign point [M]: the entropy over log C, in [0, 1], or the outputs' summed variance."""
    if isinstance(likelihood, Categorical):
        p = class_probabilities(prediction)
        return torch.special.entr(p).sum(-1) / log(p.shape[-1])
    means, variance = mixture(prediction, likelihood)
    return (variance.mean(0) + means.var(0, correction=0)).sum(-1)


def brier(p: Tensor, y: Tensor) -> Tensor:
    """Return the Brier score of probabilities [M, C] for the classes y [M]."""
    truth = torch.nn.functional.one_hot(y, p.shape[-1]).to(p)
    return ((p - truth) ** 2).sum(-1).mean()


def mixture_cdf(means: Tensor, variance: Tensor, y: Tensor) -> Tensor:
    """F(y) [M, d] of the equal mixture of S Gaussians with means and variances [S, M, d]."""
    return torch.special.ndtr((y - means) / variance.sqrt()).mean(0)


def mixture_crps(means: Tensor, variance: Tensor, y: Tensor) -> Tensor:
    """CRPS [M, d] of the mixture, in closed form (Grimit, Gneiting, Berrocal and Johnson, 2006).

    mean_s A(y - mu_s, v_s) - 1/2 mean_st A(mu_s - mu_t, v_s + v_t), where A(m, v) = E|N(m, v)|.
    """
    to_target = _mean_absolute(y - means, variance).mean(0)
    apart = _mean_absolute(means[:, None] - means[None], variance[:, None] + variance[None]).mean((0, 1))
    return to_target - apart / 2


def _mean_absolute(m: Tensor, v: Tensor) -> Tensor:
    sd = v.sqrt()
    z = m / sd
    return sd * (sqrt(2 / pi) * (-z * z / 2).exp() + z * torch.erf(z / sqrt(2)))


def auroc(scores: Tensor, positive: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return the probability that a positive's score [K] is above a negative's, ties half, or NaN without a pair.

    ``counted`` [K] leaves points out.
    """
    counted = torch.ones_like(positive) if counted is None else counted
    pairs = ((positive & counted)[:, None] & (~positive & counted)[None]).to(scores)
    difference = scores[:, None] - scores[None]
    wins = (difference > 0).to(scores) + (difference == 0).to(scores) / 2
    return (wins * pairs).sum() / pairs.sum()


def foreign_detection(own: Tensor, other: Tensor, foreign: Tensor) -> tuple[Tensor, Tensor]:
    """Return the AUROC and the histogram [2, 20] of uncertainties in [0, 1] of own points [M] and of others [K].

    ``foreign`` [K] says which of the others count.
    """
    positive = torch.cat([torch.zeros_like(own, dtype=torch.bool), torch.ones_like(foreign)])
    counted = torch.cat([torch.ones_like(own, dtype=torch.bool), foreign])
    bins = [one_hot_bins(own, UNCERTAINTY_BINS).sum(0), foreign.double() @ one_hot_bins(other, UNCERTAINTY_BINS)]
    return auroc(torch.cat([own, other]), positive, counted), torch.stack(bins)


def defined(name: str, values: Tensor) -> Tensor:
    """Return the scores [T] of the tasks that have one: all, but for the AUROC."""
    return values[~values.isnan()] if name.endswith("/auroc") else values


def expected_calibration_error(reliability: Tensor) -> float:
    """Return the ECE of pooled ``reliability`` sums [3, bins]; bins hold their lower edge, the last one 1 too."""
    points, confidence, right = reliability
    return float((confidence - right).abs().sum() / points.sum())


def one_hot_bins(values: Tensor, bins: int) -> Tensor:
    """Return [K, bins] with a 1 in the bin of each of the values [K] in [0, 1], in float64; NaN falls in none."""
    edges = torch.linspace(0, 1, bins + 1, dtype=values.dtype, device=values.device)
    above = (values[:, None] >= edges[:-1]).double()
    return above - torch.cat([above[:, 1:], torch.zeros_like(above[:, :1])], 1)
