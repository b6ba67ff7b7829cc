r"""The likelihood p(y | f) of targets given network outputs: the one place that knows sigma or softmax.

Convention: ``loss`` is the mean that the inner loop descends; ``nll`` is the SUM of -log p over points, and every
curvature is that of the sum, with Lambda_n = E_y[-d^2 log p(y | f_n) / df_n^2] under the model itself, the Fisher
information of the outputs. Where the outputs are natural parameters, as logits and log rates are, or the mean of fixed
noise, that is -d^2 log p(y_n | f_n) / df_n^2 whatever y_n is.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.func import grad

from meta_exp.hyper import Hyper, Learned
from meta_exp.likelihoods.predictive import Predictive

Targets = Literal["numbers", "counts", "classes"]


class Likelihood(ABC):
    """p(y | f) of a task's targets y given a network's outputs f [N, C].

    A likelihood is a file of its own beside this one, bears that file's name in conf/likelihood/, and is exported by
    the package; nothing else has to know it.

    Attributes:
        targets: what y is: real numbers [N, d], counts 0, 1, 2, ... [N, d], or classes 0 .. C-1 [N].
        metric: the name of its predictive's score.
        closed_form: whether the predictive has a closed form where the outputs are Gaussian; else it takes draws.
        quadratic: whether -log p(y | f) is quadratic in f, so that one Newton step finds its modes.
        concave: whether log p(y | f) is concave in f, so that a few do.
        softmax: whether the outputs are logits of classes, so that Lambda = diag(p) - p p^T.
        curved: of the values that it learns or leaves free, those on which nll and its curvature depend.
    """

    targets: ClassVar[Targets]
    metric: ClassVar[str]
    closed_form: ClassVar[bool] = False
    quadratic: ClassVar[bool] = False
    concave: ClassVar[bool] = True
    softmax: ClassVar[bool] = False
    curved: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def outputs_for(self, dimensions: int) -> int:
        """How many outputs C of a network a target of that many dimensions, or that many classes, needs."""

    def hyperparameters(self) -> dict[str, Learned]:
        """Return what is learned beside theta: nothing."""
        return {}

    def free(self) -> dict[str, Learned]:
        """Return what may be fitted after training to what is served; here what is learned."""
        return self.hyperparameters()

    def at(self, hyper: Hyper) -> Self:
        """Return this likelihood with the values that ``hyper`` holds; it has no hyper-parameter."""
        return self

    @abstractmethod
    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The inner loop's loss, a mean over the points of outputs [N, C]."""

    @abstractmethod
    def nll(self, outputs: Tensor, y: Tensor) -> Tensor:
        """-log p(y | f), summed over the N points."""

    def nll_per_loss(self, points: int, dimensions: int) -> float:
        """Return the change of ``nll`` by that of ``loss`` for N points of d dimensions; here a mean of both."""
        return points * dimensions

    def pull(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return d log p(y | f) / df at outputs [N, C]."""
        return -grad(self.nll)(outputs, y)

    @abstractmethod
    def hessian_sqrt(self, outputs: Tensor) -> Tensor:
        """S [N, C, rank] with S_n S_n^T = Lambda_n."""

    def weigh(self, outputs: Tensor, v: Tensor) -> Tensor:
        """Return Lambda_n v_n at outputs [N, C], for v [N, C]."""
        root = self.hessian_sqrt(outputs)
        return torch.einsum("ncq,nq->nc", root, torch.einsum("ncq,nc->nq", root, v))

    def rank(self, outputs: int) -> int:
        """Columns of each S_n."""
        return outputs

    @abstractmethod
    def predictive(self, outputs: Tensor, covariance: Tensor) -> Predictive:
        """Return the predictive distribution of y, the average of p(y | f) over f.

        Args:
            outputs: S draws of f at M points, [S, M, C].
            covariance: of f around each draw, [M, C, C]; zero, and not looked at, without a ``closed_form``.
        """

    def plug_in(self, outputs: Tensor) -> Predictive:
        """Return p(y | f) at the outputs [M, C] of one network."""
        return self.predictive(outputs[None], outputs.new_zeros(*outputs.shape, outputs.shape[-1]))
