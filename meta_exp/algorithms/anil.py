r"""ANIL (Raghu, Raghu, Bengio and Vinyals 2020): MAML whose inner loop moves some layers, the last one, and no other.

    theta^{k+1} = (body, head^k - alpha grad_head loss(body, head^k, S_i))
    objective_i(theta) = -log p(Q_i | theta_i) / M

The body is theta's own in every task and learned in the outer loop alone. ``layers`` says which layers adapt, by name
or by place or by kind (``models.layers``); the paper's is the last. All layers together are MAML.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from meta_exp.algorithms.maml import MAML
from meta_exp.config.checks import require
from meta_exp.models.layers import choose_layers, parameters_of


@dataclass(frozen=True, kw_only=True)
class ANIL(MAML):
    """MAML on a part of the layers.

    Attributes:
        layers: those that adapt.
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
        return parameters_of(self.model, self.chosen - self.staying)

    @cached_property
    def chosen(self) -> set[str]:
        """Names of the ``layers``."""
        return choose_layers(self.model, self.layers, "algorithm.layers")
