"""The four-block convolutional network: sizes known from the literature, a forward pass by hand, refusals."""

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_equal, conv4, image_shape

from meta_exp.models import Conv4


@pytest.mark.parametrize(
    ("shape", "filters", "downsample", "features", "parameters"),
    [
        ((1, 28, 28), 64, "stride", 64, 112_261),
        ((3, 84, 84), 32, "max_pool", 800, 32_901),
        ((3, 84, 84), 64, "max_pool", 1600, 121_093),
    ],
)
def test_sizes(shape, filters, downsample, features, parameters):
    """Features and parameter counts of the networks used for Omniglot and miniImageNet, five classes."""
    model = Conv4(shape, 5, filters, downsample)
    assert model.head.in_features == features
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.randn(2, *shape)).shape == (2, 5)


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_forward_by_hand(norm, downsample):
    """Convolution, norm, ReLU, pool, four times, then a linear layer, with PyTorch's functions."""
    model, x = conv4(norm, downsample), torch.randn(3, *image_shape(downsample)).double()
    params = dict(model.named_parameters())
    h = x
    for k in range(4):
        stride = 2 if downsample == "stride" else 1
        h = F.conv2d(h, params[f"blocks.{k}.0.weight"], params[f"blocks.{k}.0.bias"], stride=stride, padding=1)
        if norm != "none":
            scale, shift = params[f"blocks.{k}.1.affine.weight"], params[f"blocks.{k}.1.affine.bias"]
            fused = F.batch_norm(h, None, None, scale, shift, training=True)
            h = fused if norm == "batch" else F.group_norm(h, 8, scale, shift)
        h = F.relu(h)
        h = F.max_pool2d(h, 2) if downsample == "max_pool" else h
    h = h.mean((2, 3)) if downsample == "stride" else h.flatten(1)
    assert_equal(model(x), h @ params["head.weight"].T + params["head.bias"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_shape": (1,)}, "use model=mlp"),
        ({"filters": 0}, "model.filters"),
        ({"downsample": "average"}, "model.downsample"),
        ({"norm": "layer"}, "model.norm"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        Conv4(**{"input_shape": (1, 16, 16), "outputs": 2, **settings})
