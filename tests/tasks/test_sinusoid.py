"""The sinusoid family has the distribution of the MAML paper, and its curves are what its points lie on."""

import numpy as np
import pytest
import torch

from meta_exp.tasks import Sinusoid


def rng():
    return np.random.default_rng(0)


def test_shapes():
    support, query = Sinusoid(shots=3, queries=7).draw("train", rng(), tasks=5)
    assert support.x.shape == support.y.shape == (5, 3, 1)
    assert query.x.shape == query.y.shape == (5, 7, 1)
    assert support.x.dtype == torch.float32


def test_points_of_a_task_lie_on_one_sinusoid():
    """y = a sin x + b cos x with the task's a and b, for all of its points, support and query."""
    support, query = Sinusoid().draw("train", rng(), tasks=50)
    x, y = torch.cat([support.x, query.x], 1).double(), torch.cat([support.y, query.y], 1).double()
    basis = torch.cat([x.sin(), x.cos()], -1)
    solution = torch.linalg.lstsq(basis, y).solution
    torch.testing.assert_close(basis @ solution, y, rtol=0, atol=1e-5)
    amplitude = solution.norm(dim=1)[:, 0]
    phase = torch.atan2(-solution[:, 1, 0], solution[:, 0, 0])
    assert 0.1 <= amplitude.min() < 0.5
    assert 4.5 < amplitude.max() <= 5.0
    assert -1e-5 <= phase.min() < 0.3
    assert np.pi - 0.3 < phase.max() <= np.pi + 1e-5
    assert -5 <= x.min() < -4.9
    assert 4.9 < x.max() <= 5


def test_noise_has_the_given_deviation():
    quiet = Sinusoid(shots=1000).draw("train", rng(), tasks=4)
    noisy = Sinusoid(shots=1000, noise=0.3).draw("train", rng(), tasks=4)
    torch.testing.assert_close(noisy.support.x, quiet.support.x)
    assert (noisy.support.y - quiet.support.y).std().item() == pytest.approx(0.3, rel=0.05)


def test_curves_are_true_and_free_of_noise():
    family = Sinusoid(noise=0.5, amplitude=(2.0, 2.0), phase=(1.0, 1.0))
    support, query = family.draw_curves(rng(), tasks=2, points=50)
    torch.testing.assert_close(query.y, 2 * torch.sin(query.x - 1))
    assert query.x[0, 0] == -5
    assert query.x[0, -1] == 5
    assert support.x.max() <= 0
