"""The four-block convolutional network: sizes known from the literature, a forward pass by hand, refusals."""

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_equal, conv4, image_shape
from torch.func import functional_call, grad

from meta_exp.models import Conv4
from meta_exp.models import activation as activations


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


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("activation", activations.ACTIVATIONS)
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_pooling_before_what_never_falls_is_pooling_behind_it(norm, activation, compiling, monkeypatch):
    """Values, gradients and gradients of those, in the forms of eager and of compiled code, scales of both signs."""
    torch.manual_seed(0)
    model = Conv4((2, 17, 18), 3, 8, "max_pool", norm, activation).double()
    params = {name: torch.randn_like(p) if "affine" in name else p.detach() for name, p in model.named_parameters()}
    x = torch.randn(3, 2, 17, 18).double()

    def behind(params, x):
        for k in range(4):
            convolution, norm, activation, _ = model.blocks[k]
            for part, name in ((convolution, f"blocks.{k}.0."), (norm, f"blocks.{k}.1.")):
                x = functional_call(part, {n.removeprefix(name): p for n, p in params.items() if name in n}, (x,))
            x = F.max_pool2d(activation(x), 2)
        return x.flatten(1) @ params["head.weight"].T + params["head.bias"]

    def derivatives(outputs):
        def gradient(params):
            return grad(lambda params: outputs(params, x).sin().sum())(params)

        twice = grad(lambda params: sum(g.square().sum() for g in gradient(params).values()))
        return outputs(params, x), gradient(params), twice(params)

    expected = derivatives(behind)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    found = derivatives(lambda params, x: functional_call(model, params, (x,)))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


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
