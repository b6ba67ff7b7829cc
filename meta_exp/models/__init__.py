"""Networks for one task: inputs [N, *features] to outputs [N, C], with no running statistics and no randomness."""

from meta_exp.models.conv4 import Conv4
from meta_exp.models.given import Given
from meta_exp.models.mlp import MLP
from meta_exp.models.norm import Affine, BatchNorm, GroupNorm
from meta_exp.models.probe import couples_points, refuse_fused_norms, refuse_repeated_layers, refuse_unfit
from meta_exp.models.resnet12 import ResNet12

__all__ = [
    "MLP",
    "Affine",
    "BatchNorm",
    "Conv4",
    "Given",
    "GroupNorm",
    "ResNet12",
    "couples_points",
    "refuse_fused_norms",
    "refuse_repeated_layers",
    "refuse_unfit",
]
