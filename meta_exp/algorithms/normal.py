r"""Normal distributions over parameters, each entry on its own: draws, and the KL from one to another.

    KL(N(m, s^2) || N(m0, s0^2)) = sum log(s0 / s) + (s^2 + (m - m0)^2) / (2 s0^2) - 1/2

Means and log deviations are dictionaries by name, as parameters are.
"""

import torch
from torch import Tensor

from meta_exp.adaptation import Params


def drawn(mean: Params, log_deviation: Params, draw: Params) -> Params:
    """Return m + s z for standard normal z = ``draw``, which may have leading dimensions."""
    return {name: value + log_deviation[name].exp() * draw[name] for name, value in mean.items()}


def divergence(mean: Params, log_deviation: Params, prior_mean: Params, prior_log_deviation: Params) -> Tensor:
    """Return the KL from N(mean, ...) to N(prior_mean, ...), a scalar."""
    parts = []
    for name, m in mean.items():
        log_s, log_s0 = log_deviation[name], prior_log_deviation[name]
        way = (m - prior_mean[name]) * (-log_s0).exp()
        parts.append((log_s0 - log_s + ((2 * (log_s - log_s0)).exp() + way * way - 1) / 2).sum())
    return torch.stack(parts).sum()
