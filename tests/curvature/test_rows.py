"""Rows of Jacobians, layer by layer, against dense ones by reverse mode."""

import pytest
import torch
from oracles import CASES, assert_equal, dense_jacobian, initial, vector
from torch import nn
from torch.func import functional_call, vmap

from meta_exp.curvature.rows import Dense, Outer, identity_directions, jacobian_rows, to_matrix, to_params
from meta_exp.curvature.taps import Taps, layers_with_parameters
from meta_exp.models import Affine

LAYERS = {
    "linear": (lambda: nn.Sequential(nn.Linear(3, 2)), (3,)),
    "linear-no-bias": (lambda: nn.Sequential(nn.Linear(3, 2, bias=False)), (3,)),
    "affine": (lambda: nn.Sequential(Affine(3)), (3,)),
    "affine-images": (lambda: nn.Sequential(Affine(2), nn.Flatten()), (2, 3, 2)),
    "conv": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten()), (2, 4, 5)),
    "conv-all-settings": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 2, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=False), nn.Flatten()
        ),
        (2, 5, 4),
    ),
}


def random_case(name):
    """A model of one layer or a whole network, its parameters, four inputs, and taps."""
    make, shape = LAYERS[name] if name in LAYERS else CASES[name][:2]
    torch.manual_seed(0)
    model = make().double()
    params = {name: p + 0.1 * torch.randn_like(p) for name, p in initial(model).items()}
    return model, params, torch.randn(4, *shape).double(), Taps(model, shape, layers_with_parameters(model))


def dense_rows(taps, rows):
    """Blocks written out as one matrix [R, P]: row r is the combination with weights e_r."""

    def row(weights):
        parts = {}
        for name, block in rows.items():
            parts |= to_params(taps.layers[name], name, block.combine(weights))
        return vector(parts)

    count = len(next(iter(rows.values())))
    return vmap(row)(torch.eye(count).double())


@pytest.mark.parametrize("name", [*LAYERS, *CASES])
def test_plain_jacobian(name):
    """Identity directions give the Jacobian of all outputs, in the order (point, output)."""
    model, params, x, taps = random_case(name)
    _, rows = jacobian_rows(taps, params, x, identity_directions)
    assert_equal(dense_rows(taps, rows), dense_jacobian(model, params, x).flatten(0, 1))


@pytest.mark.parametrize("name", ["linear", "conv", "mlp-categorical", "conv4-batch-stride", "conv4-group-max_pool"])
def test_directions(name):
    """Rows are D_n^T J_n, in the order (point, direction), with directions that depend on the outputs."""
    model, params, x, taps = random_case(name)
    outputs = functional_call(model, params, (x,))
    mix = torch.randn(outputs.shape[1], 2).double()

    def directions(outputs):
        return outputs.sin()[:, :, None] * mix

    expected = torch.einsum("nck,ncp->nkp", directions(outputs), dense_jacobian(model, params, x))
    _, rows = jacobian_rows(taps, params, x, directions)
    assert_equal(dense_rows(taps, rows), expected.flatten(0, 1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [Outer, Dense])
def test_block_algebra(kind, bias):
    """gram, apply, combine, squares, project and column_squares against the rows written out."""
    torch.manual_seed(0)

    def block(count):
        g, a = torch.randn(count, 3).double(), torch.randn(count, 4).double()
        if bias:
            a[:, -1] = 1
        dense = g[:, :, None] * a[:, None, :]
        return Outer(g, a[:, :-1] if bias else a, bias) if kind is Outer else Dense(dense), dense.flatten(1)

    (ours, rows), (other, other_rows) = block(6), block(2)
    weights, matrix = torch.randn(6).double(), torch.randn(3, 4).double()
    assert len(ours) == 6
    assert_equal(ours.gram(other), rows @ other_rows.T)
    assert_equal(ours.apply(matrix), rows @ matrix.flatten())
    assert_equal(ours.combine(weights), (weights @ rows).view(3, 4))
    assert_equal(ours.squares(3), rows.view(2, 3, -1) @ rows.view(2, 3, -1).mT)
    assert_equal(ours.column_squares(), (rows**2).sum(0).view(3, 4))
    assert_equal(ours.dense(), rows.view(6, 3, 4))


@pytest.mark.parametrize("name", LAYERS)
def test_matrix_round_trip(name):
    """``to_params`` undoes ``to_matrix``."""
    _, params, _, taps = random_case(name)
    restored = {}
    for layer_name, layer in taps.layers.items():
        restored |= to_params(layer, layer_name, to_matrix(layer, params, layer_name))
    assert_equal(restored, params)
