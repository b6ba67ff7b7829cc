"""The MLP's layers, sizes and refusals."""

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_equal

from meta_exp.models import MLP


def test_forward_by_hand():
    """Inputs are flattened; ReLU stands between the layers and not after the last."""
    model, x = MLP((2, 3), 4, widths=(5,)).double(), torch.randn(7, 2, 3).double()
    w1, b1, w2, b2 = model.parameters()
    assert_equal(model(x), F.relu(x.flatten(1) @ w1.T + b1) @ w2.T + b2)


def test_sinusoid_network_has_1761_parameters():
    assert sum(p.numel() for p in MLP((1,), 1).parameters()) == 1761


def test_no_widths_is_a_linear_model():
    assert [tuple(p.shape) for p in MLP((3,), 2, widths=()).parameters()] == [(2, 3), (2,)]


def test_refuses_empty_layers():
    with pytest.raises(ValueError, match=r"model\.widths"):
        MLP((1,), 1, widths=(40, 0))
