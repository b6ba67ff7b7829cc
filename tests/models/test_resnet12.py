"""The residual network: sizes known from the literature, a forward pass by hand, refusals.

Its derivatives and every curvature on it are held against brute force with all networks of ``oracles.CASES``.
"""

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_equal, initial, resnet12

from meta_exp.curvature import Hessian
from meta_exp.models import ResNet12


def test_size():
    """That of MetaOptNet's network, 12.4 million parameters before the last layer."""
    model = ResNet12((3, 84, 84), 5)
    assert sum(p.numel() for p in model.blocks.parameters()) == 12_424_320
    assert model.head.in_features == 640


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_forward_by_hand(norm):
    model = resnet12() if norm == "batch" else ResNet12((1, 16, 16), 3, (8, 8, 16, 8), norm="group").double()
    params, x = initial(model), torch.randn(3, 1, 16, 16).double()

    def normed(h, name):
        scale, shift = params[f"{name}.affine.weight"], params[f"{name}.affine.bias"]
        if norm == "batch":
            return F.batch_norm(h, None, None, scale, shift, training=True)
        return F.group_norm(h, 8, scale, shift)

    h = x
    for k in range(4):
        way = h
        for i in range(3):
            way = normed(
                F.conv2d(way, params[f"blocks.{k}.way.{3 * i}.weight"], padding=1), f"blocks.{k}.way.{3 * i + 1}"
            )
            way = F.leaky_relu(way, 0.1) if i < 2 else way
        short = normed(F.conv2d(h, params[f"blocks.{k}.shortcut.0.weight"]), f"blocks.{k}.shortcut.1")
        h = F.max_pool2d(F.leaky_relu(way + short, 0.1), 2)
    assert_equal(model(x), h.mean((2, 3)) @ params["head.weight"].T + params["head.bias"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_shape": (1,)}, "model=resnet12: expected images .*; use model=mlp"),
        ({"input_shape": (1, 15, 20)}, "model=resnet12: expected images of at least 16 x 16, .*; use model=conv4"),
        ({"channels": (4, 4, 4)}, "model.channels: expected four positive numbers"),
        ({"channels": (4, 4, 0, 4)}, "model.channels: expected four positive numbers"),
        ({"norm": "none"}, "model.norm: expected batch or group"),
        ({"norm": "group", "channels": (8, 8, 12, 8)}, "model.channels: expected multiples of the 8 groups"),
        ({"activation": "sine"}, "model.activation: expected one of"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        ResNet12(**{"input_shape": (1, 16, 16), "outputs": 2, **settings})


def test_its_dense_hessian_is_refused_by_name():
    with pytest.raises(ValueError, match=r"curvature=hessian: expected at most 2000 parameters, got .*; choose curv"):
        Hessian(ResNet12((1, 28, 28), 5, (8, 8, 8, 8)), (1, 28, 28))
