"""Likelihoods p(y | f), one file each."""

from meta_exp.likelihoods.base import Hyper
from meta_exp.likelihoods.categorical import Categorical
from meta_exp.likelihoods.gaussian import Gaussian

Likelihood = Gaussian | Categorical

__all__ = ["Categorical", "Gaussian", "Hyper", "Likelihood"]
