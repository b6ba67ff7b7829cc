"""Predictives against dense linear algebra and against the averages they stand for, in float64."""

import pytest
import torch
from oracles import assert_equal, episodes, initial, mlp, task
from torch.func import functional_call, jacrev

from meta_exp.curvature import GGN
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.prediction import predict

SAMPLES = 7


def case(likelihood, outputs):
    """A network, its parameters, the posterior and noise of one task, and query inputs."""
    model = mlp(outputs)
    params = initial(model)
    support, query = task(episodes(likelihood, (2,), outputs))
    curvature = GGN(model, (2,), prior_precision=3.0)
    posterior = curvature.posterior(params, support, likelihood, {})
    generator = torch.Generator().manual_seed(0)
    noise = curvature.noise(generator, (SAMPLES,), params, len(support.x), likelihood)

    def network(p, x):
        return functional_call(model, p, (x,))

    return network, params, posterior, noise, query.x


@pytest.mark.parametrize(("likelihood", "outputs"), [(Gaussian(0.5), 1), (Categorical(), 3)])
def test_map_is_the_network_as_adapted(likelihood, outputs):
    network, params, _, _, x = case(likelihood, outputs)
    prediction = predict("map", network, params, x, likelihood)
    assert_equal(prediction.outputs, network(params, x)[None])
    assert not prediction.covariance.any()


@pytest.mark.parametrize(("likelihood", "outputs"), [(Gaussian(0.5), 1), (Categorical(), 3)])
def test_sample_runs_the_drawn_networks(likelihood, outputs):
    network, params, posterior, noise, x = case(likelihood, outputs)
    prediction = predict("sample", network, params, x, likelihood, posterior, noise)
    for s in range(SAMPLES):
        delta = posterior.sample(torch.utils._pytree.tree_map(lambda value, s=s: value[s], noise))
        assert_equal(prediction.outputs[s], network({name: params[name] + delta[name] for name in params}, x))


def test_linearized_classes_are_drawn_along_the_jacobian():
    network, params, posterior, noise, x = case(Categorical(), 3)
    prediction = predict("linearized", network, params, x, Categorical(), posterior, noise)
    jacobian = jacrev(network)(params, x)
    for s in range(SAMPLES):
        delta = posterior.sample(torch.utils._pytree.tree_map(lambda value, s=s: value[s], noise))
        step = sum(torch.tensordot(jacobian[name], delta[name], delta[name].ndim) for name in params)
        assert_equal(prediction.outputs[s], network(params, x) + step)


@pytest.mark.parametrize("outputs", [1, 3])
def test_linearized_regression_is_closed_form(outputs):
    network, params, posterior, _, x = case(Gaussian(0.5), outputs)
    prediction = predict("linearized", network, params, x, Gaussian(0.5), posterior)
    assert_equal(prediction.outputs, network(params, x)[None])
    assert_equal(prediction.covariance, posterior.functional_variance(x))
    assert (torch.linalg.eigvalsh(prediction.covariance) > 0).all()
