"""Meta-objectives of one task, each an equation: MAML and LLAMA."""

from meta_exp.algorithms.llama import LLAMA
from meta_exp.algorithms.maml import MAML

__all__ = ["LLAMA", "MAML"]
