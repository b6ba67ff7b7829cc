r"""The inner loop: from the meta-parameters theta to a task's own parameters theta_i, by gradient descent.

    theta^0 = theta,    theta^{k+1} = theta^k - alpha grad loss(theta^k),    theta_i = theta^K

A pure function of theta; differentiating through it gives the second-order meta-gradient. In first order the inner
gradient is taken as a constant, so that d theta_i / d theta = I.
"""

from collections.abc import Callable

from torch import Tensor
from torch.func import grad

Params = dict[str, Tensor]


def step(loss: Callable[[Params], Tensor], params: Params, *, lr: float, first_order: bool = False) -> Params:
    """Return theta^{k+1} of theta^k = ``params``, with rate ``lr`` (the paper's alpha)."""
    gradient = grad(loss)(params)
    if first_order:
        gradient = {name: g.detach() for name, g in gradient.items()}
    return {name: value - lr * gradient[name] for name, value in params.items()}


def adapt(
    loss: Callable[[Params], Tensor], theta: Params, *, lr: float, steps: int, first_order: bool = False
) -> list[Params]:
    """Return the path [theta^0, ..., theta^K] of ``steps`` = K steps."""
    path = [theta]
    for _ in range(steps):
        path.append(step(loss, path[-1], lr=lr, first_order=first_order))
    return path
