r"""ANIL (Raghu, Raghu, Bengio and Vinyals 2020): MAML whose inner loop moves some layers, the last one, and no other.

    theta^{k+1} = (body, head^k - alpha grad_head loss(body, head^k, S_i))
    objective_i(theta) = -log p(Q_i | theta_i) / M

The body is theta's own in every task and learned in the outer loop alone. ``layers`` says which layers adapt, by name
or by place in the network; the paper's is the last. All layers together are MAML.

A layer is a module with parameters of its own, so that a norm is one beside its convolution. A name stands for all
layers below it too: ``blocks.3`` is the fourth block of Conv4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from meta_exp.adaptation import Meta, Params, gradient_step
from meta_exp.algorithms.maml import MAML
from meta_exp.config.checks import require
from meta_exp.curvature.taps import layers_with_parameters
from meta_exp.tasks.episode import Examples


@dataclass(frozen=True, kw_only=True)
class ANIL(MAML):
    """MAML on a part of the layers.

    Attributes:
        layers: those that adapt: names, or places counted from 0, or from the end by -1, -2, ...
    """

    layers: Sequence[str | int] = (-1,)

    def __post_init__(self) -> None:
        """Refuse layers that the network lacks, a choice of none, and steps that move others."""
        super().__post_init__()
        remedy = "a Gauss-Newton step moves what the curvature treats; choose algorithm=maml curvature=last_layer"
        require(self.inner_loop == "gradient", "algorithm.inner_loop", "gradient", self.inner_loop, remedy)
        require(len(self.adapted) > 0, "algorithm.layers", "a choice that leaves a layer to adapt", list(self.layers))

    @cached_property
    def adapted(self) -> tuple[str, ...]:
        """Names of the parameters that adapt."""
        return self._parameters(self._chosen())

    def step(self, params: Params, support: Examples, k: int, meta: Meta) -> Params:
        """Return theta^{k+1} of theta^k: a gradient step of the layers that adapt."""
        moving = {name: params[name] for name in self.adapted}
        rest = {name: value for name, value in params.items() if name not in moving}

        def loss(part: Params) -> Tensor:
            return self.loss(rest | part, support)

        return params | gradient_step(loss, moving, lr=self.inner_lr, first_order=self.first_order)

    def _chosen(self) -> set[str]:
        """Return the names of the layers that ``layers`` names."""
        names = list(layers_with_parameters(self.model))
        found = set()
        for layer in self.layers:
            if isinstance(layer, int):
                known = -len(names) <= layer < len(names)
                below = [names[layer]] if known else []
            else:
                below = [name for name in names if name == layer or name.startswith(f"{layer}.")]
            require(len(below) > 0, "algorithm.layers", f"layers among {', '.join(names)}, or their places", layer)
            found |= set(below)
        return found

    def _parameters(self, layers: set[str]) -> tuple[str, ...]:
        own = [name for name, value in self.model.named_parameters() if value.requires_grad]
        return tuple(name for name in own if name.rpartition(".")[0] in layers)
