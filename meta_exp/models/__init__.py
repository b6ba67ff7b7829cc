"""Networks for one task: inputs [N, *features] to outputs [N, C], with no running statistics and no randomness."""

from meta_exp.models.conv4 import Conv4
from meta_exp.models.mlp import MLP
from meta_exp.models.norm import Affine, BatchNorm, GroupNorm, refuse_fused_norms

__all__ = ["MLP", "Affine", "BatchNorm", "Conv4", "GroupNorm", "refuse_fused_norms"]
