"""The same work by learn2learn's own interface: a clone and its adaptation for each task, and a backward pass."""

import sys
from collections.abc import Sequence

import learn2learn as l2l
import torch
import torch.nn.functional as F
from measure import built
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from meta_exp.models import MLP, Conv4
from meta_exp.tasks.episode import Episode
from meta_exp.training.learner import Learner

SAME = 1e-9  # in float64, relative


class Peer:
    """learn2learn's MAML with the network, the weights, the inner loop and the losses of ``learner``.

    Its regression loss is the mean of squares: ours too, at sigma^2 = 1/2.
    """

    def __init__(self, learner: Learner) -> None:
        algorithm = learner.algorithm
        self.maml = l2l.algorithms.MAML(plain(algorithm.model), algorithm.inner_lr, algorithm.first_order)
        self.inner_steps = algorithm.inner_steps
        self.loss = F.cross_entropy if algorithm.likelihood.targets == "classes" else F.mse_loss

    def meta_gradient(self, episodes: Episode) -> list[Tensor]:
        """Return the gradient of the mean over tasks of the query loss, by the parameters."""
        self.maml.zero_grad()
        (support_x, support_y), (query_x, query_y) = episodes
        for task in range(len(query_y)):
            self.backward(support_x[task], support_y[task], query_x[task], query_y[task])
        return self.mean_gradient(len(query_y))

    def backward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> None:
        """Add the gradient of a task's query loss."""
        learner = self.maml.clone()
        for _ in range(self.inner_steps):
            learner.adapt(self.loss(learner(support_x), support_y))
        self.loss(learner(query_x), query_y).backward()

    def mean_gradient(self, tasks: int) -> list[Tensor]:
        """Divide the gradient, which is a sum so far, by the number of tasks."""
        gradient = [parameter.grad for parameter in self.maml.parameters()]
        return [value.mul_(1 / tasks) for value in gradient if value is not None]


def plain(model: nn.Module) -> nn.Sequential:
    """Return the network of ``model`` in PyTorch's own layers, with the same weights in the same order."""
    *hidden, (outputs, features) = [parameter.shape for parameter in model.parameters() if parameter.ndim > 1]
    if isinstance(model, MLP):
        layers = [nn.Flatten()]
        for width, inputs in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
    else:
        assert isinstance(model, Conv4)
        layers = []
        for filters, channels, *_ in hidden:
            convolution = nn.Conv2d(channels, filters, 3, stride=2 if model.average else 1, padding=1)
            pools = [] if model.average else [nn.MaxPool2d(2)]
            layers += [convolution, nn.BatchNorm2d(filters, track_running_stats=False), nn.ReLU(), *pools]
        layers.append(l2l.nn.Lambda(lambda x: x.mean((2, 3))) if model.average else nn.Flatten())
    network = nn.Sequential(*layers, nn.Linear(features, outputs)).to(next(model.parameters()))
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), network.parameters(), strict=True):
            theirs.copy_(ours)
    return network


def check(overrides: Sequence[str]) -> None:
    """Exit unless both sides give the same meta-gradient in float64, where rounding cannot excuse a difference."""
    learner, batch = built([*overrides, "dataset.meta_batch=2"])
    learner.double()
    batch = tree_map(lambda value: value.double() if value.is_floating_point() else value, batch)
    apart = difference(learner, Peer(learner), batch)
    if not apart < SAME:
        sys.exit(f"{' '.join(overrides)}: expected learn2learn's meta-gradient, got one that differs by {apart:.1e}")


def difference(learner: Learner, peer: Peer, episodes: Episode) -> float:
    """Return the norm of the difference of the two meta-gradients, relative to the norm of learn2learn's."""
    ours = torch.cat([value.flatten() for value in learner.meta_gradient(episodes)[1].values()])
    theirs = torch.cat([value.flatten() for value in peer.meta_gradient(episodes)])
    return float((ours - theirs).norm() / theirs.norm())
