"""Meta-learning algorithms, one file each: a task's path and its meta-objective as an equation."""

from meta_exp.algorithms.base import Algorithm, Logs
from meta_exp.algorithms.llama import LLAMA
from meta_exp.algorithms.llama_predictive import LLAMAPredictive
from meta_exp.algorithms.maml import MAML
from meta_exp.algorithms.meta_sgd import MetaSGD

__all__ = ["LLAMA", "MAML", "Algorithm", "LLAMAPredictive", "Logs", "MetaSGD"]
