"""Likelihoods p(y | f), one file each."""

from meta_exp.likelihoods.base import Hyper, Likelihood
from meta_exp.likelihoods.categorical import Categorical
from meta_exp.likelihoods.gaussian import Gaussian
from meta_exp.likelihoods.heteroscedastic import HeteroscedasticGaussian
from meta_exp.likelihoods.poisson import Poisson
from meta_exp.likelihoods.probit import Probit

__all__ = ["Categorical", "Gaussian", "HeteroscedasticGaussian", "Hyper", "Likelihood", "Poisson", "Probit"]
