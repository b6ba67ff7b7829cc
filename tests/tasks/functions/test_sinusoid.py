"""The sinusoid family has the distribution of the MAML paper."""

import numpy as np
import torch

from meta_exp.tasks import Sinusoid


def test_points_of_a_task_lie_on_one_sinusoid():
    """y = a sin x + b cos x with the task's a and b, for all of its points, support and query."""
    support, query = Sinusoid().draw("train", np.random.default_rng(0), tasks=50)
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
