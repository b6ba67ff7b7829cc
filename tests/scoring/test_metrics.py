"""What is foreign, and how calibrated pooled predictions are, against torchmetrics, in float64."""

import pytest
import torch
from oracles import assert_equal
from torch.func import vmap
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

from meta_exp.likelihoods import Categorical
from meta_exp.scoring.metrics import auroc, expected_calibration_error


def test_auroc_is_that_of_torchmetrics_ties_included():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(10, (200,), generator=generator).double() / 10
    positive = torch.rand(200, generator=generator) < 0.3 + 0.4 * scores
    counted = torch.rand(200, generator=generator) < 0.8
    assert_equal(auroc(scores, positive).float(), binary_auroc(scores, positive.long()), rtol=1e-6)
    left = binary_auroc(scores[counted], positive[counted].long())
    assert_equal(auroc(scores, positive, counted).float(), left, rtol=1e-6)
    assert auroc(scores, torch.zeros_like(positive)).isnan()


def test_pooled_ece_is_that_of_torchmetrics():
    """Sums over tasks give the ECE of all their points, not the mean of the tasks' ECEs."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, 4000, 5, generator=generator, dtype=torch.double)
    p = logits.softmax(-1).mean(0)
    y = p.multinomial(1, generator=generator)[:, 0]
    expected = multiclass_calibration_error(p, y, num_classes=5, n_bins=15)

    def reliability(logits, y):
        return Categorical().predictive(logits, logits.new_zeros(40, 5, 5)).histograms(y)["reliability"]

    sums = vmap(reliability)(logits.unflatten(1, (100, 40)).movedim(1, 0), y.view(100, 40))
    assert expected_calibration_error(sums.sum(0)) == pytest.approx(float(expected), abs=1e-6)
    assert sums[:, 0].sum() == 4000
    means = [expected_calibration_error(task) for task in sums]
    assert sum(means) / 100 > 1.3 * float(expected)  # few points a bin: noise that pooling averages away
