r"""What is scored beyond one predictive's own scores: knowing what is foreign to the task, and pooled calibration.

    ece         sum_b n_b / n |mean confidence - accuracy| over 15 equal bins of max_c p_c, pooled over points and tasks
    auroc       P(u_out > u_in) + P(u_out = u_in) / 2 for the uncertainty u of a point that is foreign to the task and
                of one that is not; 1/2 is blind. NaN for a task that has no points of one kind, or has failed

u is that of the predictive: the entropy of p, or the variance. torchmetrics has the ECE and the AUROC for data in
memory only, and not under vmap; the tests hold ours against it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from meta_exp.likelihoods.predictive import UNCERTAINTY_BINS, one_hot_bins


def auroc(scores: Tensor, positive: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return the probability that a positive's score [K] is above a negative's, ties half.

    NaN without a pair, or where a score is. ``counted`` [K] leaves points out.
    """
    counted = torch.ones_like(positive) if counted is None else counted
    pairs = ((positive & counted)[:, None] & (~positive & counted)[None]).to(scores)
    difference = scores[:, None] - scores[None]
    wins = (difference > 0).to(scores) + (difference == 0).to(scores) / 2
    return ((wins * pairs).sum() / pairs.sum()).masked_fill((scores.isnan() & counted).any(), torch.nan)


def foreign_detection(own: Tensor, other: Tensor, foreign: Tensor) -> tuple[Tensor, Tensor]:
    """Return the AUROC and the histogram [2, 20] of uncertainties in [0, 1] of own points [M] and of others [K].

    ``foreign`` [K] says which of the others count.
    """
    positive = torch.cat([torch.zeros_like(own, dtype=torch.bool), torch.ones_like(foreign)])
    counted = torch.cat([torch.ones_like(own, dtype=torch.bool), foreign])
    bins = [one_hot_bins(own, UNCERTAINTY_BINS).sum(0), foreign.double() @ one_hot_bins(other, UNCERTAINTY_BINS)]
    return auroc(torch.cat([own, other]), positive, counted), torch.stack(bins)


def defined(name: str, scores: Mapping[str, Tensor]) -> Tensor:
    """Return the scores [T] called ``name`` of the tasks that have one.

    That is all of them, but for the AUROC of tasks that hold no foreign points; one that has failed stays, as NaN.
    """
    kind, _, score = name.rpartition("/")
    values = scores[name]
    return values[~values.isnan() | scores[f"{kind}/nll"].isnan()] if score == "auroc" else values


def failed_tasks(scores: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return the numbers of the tasks that each predictive has no NLL [T] for, of those that have some."""
    nlls = {name.removesuffix("/nll"): values for name, values in scores.items() if name.endswith("/nll")}
    failed = {kind: values.isnan().nonzero()[:, 0].tolist() for kind, values in nlls.items()}
    return {kind: tasks for kind, tasks in failed.items() if tasks}


def expected_calibration_error(reliability: Tensor) -> float:
    """Return the ECE of pooled ``reliability`` sums [3, bins]; bins hold their lower edge, the last one 1 too."""
    points, confidence, right = reliability
    return float((confidence - right).abs().sum() / points.sum())
