"""The scale of columns: what it measures, and back again without loss where means are large."""

import numpy as np
import torch

from meta_exp.tasks.tables.columns import Scale, measure_scale


def test_columns_get_mean_0_and_deviation_1():
    values = np.random.default_rng(0).normal([5, -3e6, 0], [2, 1e3, 1e-3], (200, 3))
    scale = measure_scale(values)
    z = scale.standardize(torch.from_numpy(values))
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(3).double(), rtol=1e-6, atol=0)
    np.testing.assert_allclose(scale.restore(z), values, rtol=1e-12)
    np.testing.assert_allclose(scale.restore_variance(torch.ones(2, 3)), np.square([scale.std] * 2))


def test_times_in_seconds_keep_their_differences():
    """Single precision holds 1.7e9 to the minute; the mean is subtracted before."""
    seconds = torch.tensor([[1_700_000_000.0], [1_700_000_001.0]], dtype=torch.float64)
    z = Scale([1_700_000_000.0], [2.0]).standardize(seconds).float()
    assert z.flatten().tolist() == [0, 0.5]


def test_a_constant_column_becomes_0():
    for constant in (0.0, 0.1, 1e9 / 3):
        scale = measure_scale(np.full((7, 1), constant))
        assert scale.std == [1.0]
        assert abs(float(scale.standardize(torch.full((1, 1), constant, dtype=torch.float64)))) < 1
