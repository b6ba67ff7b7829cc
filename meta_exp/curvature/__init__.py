"""Structures of the curvature H = tau I + (curvature of -log p(data | phi)): one file each, one posterior each."""

from meta_exp.curvature.base import Curvature, Noise, Posterior
from meta_exp.curvature.diagonal import Diagonal
from meta_exp.curvature.ggn import GGN
from meta_exp.curvature.hessian import Hessian
from meta_exp.curvature.kfac import KFAC
from meta_exp.curvature.last_layer import LastLayer

__all__ = ["GGN", "KFAC", "Curvature", "Diagonal", "Hessian", "LastLayer", "Noise", "Posterior"]
