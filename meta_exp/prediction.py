r"""Predictive distributions of an adapted task, from its posterior N(theta_i, H^-1) over parameters phi.

    map         f(x; theta_i)                                         the network as adapted
    sample      f(x; phi_s),  phi_s ~ N(theta_i, H^-1)                S networks; S = 1 is LLAMA's rule for production
    linearized  f(x; theta_i) + J(x) (phi - theta_i)                  closed form for a Gaussian, else S draws

A posterior around the mode theta* is one of the linear model: map is then that model at its mode, f(x; theta_i) +
J(x) (theta* - theta_i), and the draws of both other kinds are functions of it. The network itself is another function
so far from theta_i.

An algorithm that ends in several networks predicts by their mixture as map, and one that ends in a distribution of its
own by draws from it as sample.

Every kind gives the same thing, S draws of outputs with a covariance around each, so that the likelihood averages them
in the right space: probabilities for classes, a mixture of densities for regression.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vmap

from meta_exp.adaptation import Params
from meta_exp.curvature import Noise, Posterior
from meta_exp.likelihoods import Likelihood

KINDS = ("map", "sample", "linearized")
Network = Callable[[Params, Tensor], Tensor]


class Prediction(NamedTuple):
    """Draws of the outputs [S, M, C] at M points, and the covariance [M, C, C] around each draw, without noise."""

    outputs: Tensor
    covariance: Tensor


def predict(
    kind: str,
    network: Network,
    theta_i: Params,
    x: Tensor,
    likelihood: Likelihood,
    posterior: Posterior | None = None,
    noise: Noise | None = None,
) -> Prediction:
    """Predict at x [M, *features] for one task.

    Args:
        kind: one of ``KINDS``; all but ``map`` need the posterior, and all but a closed form the noise.
        network: maps parameters and inputs to outputs [M, C].
        theta_i: the adapted parameters.
        x: the query inputs.
        likelihood: decides whether the linearised predictive has a closed form.
        posterior: around ``theta_i``.
        noise: of S posterior draws, with a leading dimension S.
    """
    closed = kind == "map" or (kind == "linearized" and likelihood.closed_form)
    if closed and posterior is not None and posterior.at_mode:
        at_mode, covariance = posterior.moments(x)
        return Prediction(at_mode.to(x.dtype)[None], torch.zeros_like(covariance) if kind == "map" else covariance)
    if kind == "map":
        return mixture(network(theta_i, x)[None])
    assert posterior is not None
    if closed:
        return Prediction(network(theta_i, x)[None], posterior.functional_variance(x))
    linear = kind == "linearized" or posterior.at_mode

    def draw(noise: Noise) -> Tensor:
        delta = posterior.sample(noise)
        return linearized(network, theta_i, delta, x) if linear else network(moved(theta_i, delta), x)

    assert noise is not None
    return mixture(vmap(draw)(noise))


def mixture(outputs: Tensor) -> Prediction:
    """Return S draws of outputs [S, M, C] with no covariance around each."""
    return Prediction(outputs, outputs.new_zeros(*outputs.shape[1:], outputs.shape[-1]))


def moved(theta_i: Params, delta: Params) -> Params:
    """Return theta_i + delta, which has only those parameters that the posterior treats."""
    return theta_i | {name: theta_i[name] + value for name, value in delta.items()}


def linearized(network: Network, theta_i: Params, delta: Params, x: Tensor) -> Tensor:
    """Return f(x; theta_i) + J(x) delta [M, C], the linear model's outputs at parameters moved by delta."""
    treated = {name: theta_i[name] for name in delta}
    found = jvp(lambda params: network(theta_i | params, x), (treated,), (delta,))  # both in one pass
    return found[0] + found[1]
