r"""The likelihood p(y | f) of targets given network outputs: the one place that knows sigma or softmax.

Convention: ``loss`` is the mean that the inner loop descends; ``nll`` is the SUM of -log p over points, and every
curvature is that of the sum, with Lambda_n = -d^2 log p(y_n | f_n) / df_n^2.
"""

from meta_exp.hyper import Hyper

__all__ = ["Hyper"]
