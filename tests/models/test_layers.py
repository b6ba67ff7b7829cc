"""A choice of layers by name, by place and by kind."""

import re

import pytest
from oracles import conv4, mlp, resnet12
from torch import nn

from meta_exp.models.layers import choose_layers, layers_with_parameters, parameters_of

CONV4 = [f"blocks.{i}.{part}" for i in range(4) for part in ("0", "1.affine")]


class Named(nn.Module):
    """A network whose layers are called as kinds are."""

    def __init__(self):
        super().__init__()
        self.norm = nn.Linear(2, 2)
        self.other = nn.Sequential(nn.Linear(2, 4), nn.GroupNorm(2, 4))


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ([], []),
        (["norm"], CONV4[1::2]),
        (["convolution"], CONV4[::2]),
        (["linear"], ["head"]),
        (["norm", "linear"], [*CONV4[1::2], "head"]),
        ([-1, 0], ["blocks.0.0", "head"]),
        (["blocks.3"], CONV4[6:]),
        (["blocks.1.1", "blocks.1.1.affine", 3], ["blocks.1.1.affine"]),
        (["blocks"], CONV4),
    ],
)
def test_by_name_place_and_kind(choices, expected):
    assert choose_layers(conv4(), choices, "key") == set(expected)


def test_all_norms_of_every_network():
    """ResNet12 has one behind each convolution, also on its ways around; an MLP has none, which is no fault."""
    model = resnet12()
    assert choose_layers(model, ["norm", "convolution", "linear"], "key") == set(layers_with_parameters(model))
    assert len(choose_layers(model, ["norm"], "key")) == len(choose_layers(model, ["convolution"], "key")) == 16
    assert choose_layers(mlp(), ["norm"], "key") == set()


def test_a_name_comes_before_a_kind():
    assert choose_layers(Named(), ["norm"], "key") == {"norm"}
    assert choose_layers(Named(), ["other"], "key") == {"other.0", "other.1"}


def test_parameters_are_those_that_are_trained_in_order():
    model = mlp()
    model.get_parameter("1.weight").requires_grad_(False)
    assert list(layers_with_parameters(model)) == ["1", "3", "5"]
    assert parameters_of(model, {"5", "1"}) == ("1.bias", "5.weight", "5.bias")
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    assert choose_layers(model, [0], "key") == {"3"}


@pytest.mark.parametrize("choice", [3, -4, "head", "1.weight", "norms", ""])
def test_refuses_what_is_not_there(choice):
    message = f"a.key: expected layers among 1, 3, 5, or their places, got {choice}; or a kind: convolution, linear,"
    with pytest.raises(ValueError, match=re.escape(message)):
        choose_layers(mlp(), [choice], "a.key")
