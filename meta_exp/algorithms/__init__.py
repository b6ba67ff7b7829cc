"""Meta-learning algorithms, one file each: a task's path and its meta-objective as an equation."""

from meta_exp.algorithms.abml import ABML
from meta_exp.algorithms.anil import ANIL
from meta_exp.algorithms.base import Algorithm, Logs
from meta_exp.algorithms.bmaml import BMAML
from meta_exp.algorithms.boil import BOIL
from meta_exp.algorithms.llama import LLAMA
from meta_exp.algorithms.llama_predictive import LLAMAPredictive
from meta_exp.algorithms.maml import MAML
from meta_exp.algorithms.maml_plus_plus import MAMLPlusPlus
from meta_exp.algorithms.meta_sgd import MetaSGD
from meta_exp.algorithms.platipus import PLATIPUS
from meta_exp.algorithms.reptile import Reptile

__all__ = [
    "ABML",
    "ANIL",
    "BMAML",
    "BOIL",
    "LLAMA",
    "MAML",
    "PLATIPUS",
    "Algorithm",
    "LLAMAPredictive",
    "Logs",
    "MAMLPlusPlus",
    "MetaSGD",
    "Reptile",
]
