"""The inner loop against closed forms and against torch.autograd."""

import pytest
import torch
from oracles import assert_equal
from torch.func import jacrev

from meta_exp.adaptation import Meta, adapt, gradient_step, path

A = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
B = torch.tensor([1.0, -3.0]).double()
START = torch.tensor([0.3, 0.7]).double()


class Descent:
    """Gradient steps on a loss that needs no data."""

    def __init__(self, loss, **settings):
        self.loss, self.settings = loss, settings

    def start(self, meta):
        return meta.theta

    def step(self, params, support, k, meta):
        return gradient_step(self.loss, params, **self.settings)


def quadratic(params):
    """w A w / 2 - b w, whose gradient is A w - b."""
    return params["w"] @ A @ params["w"] / 2 - B @ params["w"]


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("first_order", [False, True])
def test_path_on_a_quadratic(steps, first_order):
    """theta^k = w* + (I - alpha A)^k (theta - w*), and the path holds theta and every step after it."""
    algorithm, meta = Descent(quadratic, lr=0.1, first_order=first_order), Meta({"w": START}, {})
    states = list(path(algorithm, None, meta, steps))
    assert len(states) == steps + 1
    assert_equal(adapt(algorithm, None, meta, steps), states[-1])
    best = torch.linalg.solve(A, B)
    for k, params in enumerate(states):
        shrink = torch.linalg.matrix_power(torch.eye(2).double() - 0.1 * A, k)
        assert_equal(params["w"], best + shrink @ (START - best))


@pytest.mark.parametrize("steps", [1, 3])
def test_derivative_in_theta(steps):
    """d theta_i / d theta is (I - alpha A)^K in second order, I in first order."""

    def adapted(w, first_order):
        return adapt(Descent(quadratic, lr=0.1, first_order=first_order), None, Meta({"w": w}, {}), steps)["w"]

    eye = torch.eye(2).double()
    assert_equal(jacrev(adapted)(START, False), torch.linalg.matrix_power(eye - 0.1 * A, steps))
    assert_equal(jacrev(adapted)(START, True), eye)


def test_against_autograd():
    """Three steps on a loss with a varying Hessian, and the gradient through them, against torch.autograd.grad."""

    def loss(params):
        return (params["w"].sin() * params["v"]).square().sum() + params["v"].exp().sum()

    leaves = {"w": START.clone().requires_grad_(), "v": B.clone().requires_grad_()}
    expected = leaves
    for _ in range(3):
        gradients = torch.autograd.grad(loss(expected), list(expected.values()), create_graph=True)
        expected = {name: p - 0.05 * g for (name, p), g in zip(expected.items(), gradients, strict=True)}
    found = adapt(Descent(loss, lr=0.05), None, Meta(leaves, {}), 3)
    assert_equal(found, expected)
    ours, theirs = (torch.autograd.grad(loss(params), list(leaves.values())) for params in (found, expected))
    assert_equal(ours, theirs)
