"""One training step of MAML by ourselves and by every peer, turn by turn in one process; a table a case.

    uv run python benchmarks/peers.py [CASE ...] [--seconds S] [--rounds N]

A step is the meta-gradient of one meta-batch of random numbers that lies ready, and Adam's step: learn2learn's clones,
parallel-metalearn's vmap, the same written in JAX and optax and jitted whole, and ours, eager and compiled. All have
the same network and weights. "differs by" is the difference of a peer's meta-gradient from ours in float64, relative:
what is not far below 1e-6 is another gradient.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
import torch.nn.functional as F
from measure import Step, built, conditions, in_turns, middle, ratios
from metalearn.algorithms import MAML
from metalearn.inner_optimizers.optimizers import InnerSGD
from metalearn.loss.base import BaseLoss
from metalearn.model_wrappers import MAML_Model
from peer import Peer, plain
from rich.console import Console
from rich.table import Table
from throughput import CASES
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from meta_exp.models import MLP
from meta_exp.tasks.episode import Episode
from meta_exp.training.learner import Learner

LR = 0.001  # Adam's
Gradient = list[Tensor]  # by the parameters, in the model's order


def ours(learner: Learner, episodes: Episode) -> tuple[Step, Callable[[], Gradient]]:
    """Return our step, and what gives its gradient; PyTorch's own loop over them, without Lightning's."""
    parameters = list(learner.model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=LR, fused=True)

    def gradient() -> Gradient:
        return list(learner.meta_gradient(episodes)[1].values())

    def step() -> None:
        for parameter, value in zip(parameters, gradient(), strict=True):
            parameter.grad = value
        optimizer.step()

    return step, gradient


def learn2learn(learner: Learner, episodes: Episode) -> tuple[Step, Callable[[], Gradient]]:
    """Return learn2learn's step, and what gives its gradient."""
    peer = Peer(learner)
    optimizer = torch.optim.Adam(peer.maml.parameters(), lr=LR)

    def step() -> None:
        peer.meta_gradient(episodes)
        optimizer.step()

    return step, partial(peer.meta_gradient, episodes)


class _Plain(nn.Module):
    """A module of PyTorch's, called as parallel-metalearn calls its own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.module(x)


class _Loss(BaseLoss):
    """Our inner loop's loss, in parallel-metalearn's interface."""

    def __init__(self, classes: bool) -> None:
        super().__init__()
        self.loss = F.cross_entropy if classes else F.mse_loss

    def forward(self, out_dict: Any, targets: Tensor, model_states: Any = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        loss = self.loss(out_dict["logits"], targets)
        return loss, loss.detach()


def parallel_metalearn(learner: Learner, episodes: Episode) -> tuple[Step, Callable[[], Gradient]]:
    """Return parallel-metalearn's step, all tasks in one vmap, and what gives its gradient."""
    *body, head = plain(learner.algorithm.model)
    model = MAML_Model(backbone=_Plain(nn.Sequential(*body)), head=_Plain(head))
    algorithm = MAML(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=LR),
        inner_optimizer=InnerSGD(model.get_fast_weights(), inner_lr=learner.algorithm.inner_lr, learn_lr=False),
        support_loss_fn=_Loss(learner.algorithm.likelihood.targets == "classes"),
        inner_steps=learner.algorithm.inner_steps,
        chunk_size=len(episodes.query.y),
    )
    (support, support_y), (query, query_y) = episodes

    def step() -> None:
        algorithm.step(iter([(support, support_y, query, query_y)]))

    def gradient() -> Gradient:
        before = [parameter.detach().clone() for parameter in model.parameters()]
        step()
        found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), before, strict=True):
                parameter.copy_(value)
        return found

    return step, gradient


def in_jax(learner: Learner, episodes: Episode) -> tuple[Step, Callable[[], Gradient]]:
    """Return the step written in JAX and optax, jitted whole, and what gives its gradient."""
    algorithm = learner.algorithm
    network = _mlp if isinstance(algorithm.model, MLP) else partial(_conv4, average=algorithm.model.average)
    classes = algorithm.likelihood.targets == "classes"
    theta = [jnp.asarray(parameter.detach().numpy()) for parameter in plain(algorithm.model).parameters()]
    batch = tree_map(lambda value: jnp.asarray(value.numpy()), episodes)
    optimizer = optax.adam(LR)

    def loss(params: Any, x: Any, y: Any) -> Any:
        outputs = network(params, x)
        if not classes:
            return jnp.mean((outputs - y) ** 2)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()

    def task(theta: Any, support: Any, query: Any) -> Any:
        params = theta
        for _ in range(algorithm.inner_steps):
            slope = jax.grad(loss)(params, *support)
            params = [p - algorithm.inner_lr * s for p, s in zip(params, slope, strict=True)]
        return loss(params, *query)

    def mean(theta: Any, batch: Any) -> Any:
        return jax.vmap(task, (None, 0, 0))(theta, tuple(batch.support), tuple(batch.query)).mean()

    @jax.jit
    def update(theta: Any, state: Any, batch: Any) -> Any:
        changes, state = optimizer.update(jax.grad(mean)(theta, batch), state)
        return optax.apply_updates(theta, changes), state

    state = [theta, optimizer.init(theta)]

    def step() -> None:
        state[:] = jax.block_until_ready(update(*state, batch))

    def gradient() -> Gradient:
        return [torch.from_numpy(jax.device_get(value).copy()) for value in jax.grad(mean)(theta, batch)]

    return step, gradient


def _mlp(params: Any, x: Any) -> Any:
    *hidden, weight, bias = params
    x = x.reshape(len(x), -1)
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        x = jax.nn.relu(x @ w.T + b)
    return x @ weight.T + bias


def _conv4(params: Any, x: Any, average: bool) -> Any:
    *blocks, weight, bias = params
    stride = (2, 2) if average else (1, 1)
    for w, b, scale, shift in zip(*(blocks[i::4] for i in range(4)), strict=True):
        x = jax.lax.conv_general_dilated(x, w, stride, ((1, 1), (1, 1))) + b[:, None, None]
        x = (x - x.mean((0, 2, 3), keepdims=True)) / jnp.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
        x = jax.nn.relu(x * scale[:, None, None] + shift[:, None, None])
        if not average:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    x = x.mean((2, 3)) if average else x.reshape(len(x), -1)
    return x @ weight.T + bias


SIDES = {"learn2learn": learn2learn, "parallel-metalearn": parallel_metalearn, "JAX and optax": in_jax}


def differences(overrides: list[str]) -> dict[str, float]:
    """Return how far the peers' meta-gradients of two tasks are from ours in float64, relative."""
    learner, batch = built([*overrides, "dataset.meta_batch=2"])
    learner.double()
    batch = tree_map(lambda value: value.double() if value.is_floating_point() else value, batch)
    expected = torch.cat([value.flatten() for value in ours(learner, batch)[1]()])
    found = {}
    with jax.enable_x64(True):
        for name, side in SIDES.items():
            gradient = torch.cat([value.flatten().double() for value in side(learner, batch)[1]()])
            found[name] = float((gradient - expected).norm() / expected.norm())
    return found


def table_of(case: str, seconds: float, rounds: int) -> Table:
    """Measure a case."""
    overrides = [*CASES[case], "algorithm=maml"]
    apart = differences(overrides)
    learner, batch = built(overrides)
    steps = {name: side(learner, batch)[0] for name, side in SIDES.items()}
    for form in ("eager", "compiled"):
        steps[f"ours, {form}"] = ours(built(overrides, form == "compiled")[0], batch)[0]
    times = in_turns(steps, seconds, case, rounds)
    table = Table("whose", "ms", "middle half", "ours compiled, times faster", "differs by", title=f"One step: {case}")
    for name in steps:
        faster = middle(ratios(times, name, "ours, compiled"), 2)[0]
        differs = f"{apart[name]:.0e}" if name in apart else ""
        table.add_row(name, *middle([1e3 * t for t in times[name]], 2), faster, differs)
    return table


def main() -> None:
    """Measure the cases named on the command line, or all, and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all if none is named")
    parser.add_argument("--seconds", type=float, default=60.0, help="that the turns of a case go on for")
    parser.add_argument("--rounds", type=int, default=5, help="of turns, at least")
    arguments = parser.parse_args()
    for case in arguments.cases or CASES:
        Console(width=110).print(table_of(case, arguments.seconds, arguments.rounds))
    print(f"jax {jax.__version__}, {conditions()}")


if __name__ == "__main__":
    main()
