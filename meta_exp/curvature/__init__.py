"""Structures of the curvature H = tau I + (curvature of -log p(data | phi)): one file each, one posterior each."""

from meta_exp.curvature.base import Curvature, Noise, Posterior
from meta_exp.curvature.ggn import GGN
from meta_exp.curvature.last_layer import LastLayer

__all__ = ["GGN", "Curvature", "LastLayer", "Noise", "Posterior"]
