r"""BOIL (Oh, Yoo, Kim and Yun 2021): MAML whose inner loop moves every layer but some, the last one.

    theta^{k+1} = (body^k - alpha grad_body loss(body^k, head, S_i), head)
    objective_i(theta) = -log p(Q_i | theta_i) / M

ANIL the other way round: the representation has to change, since the head stays theta's own in every task, and is
learned in the outer loop alone. ``layers`` are those that do not adapt, named as in ANIL; without any it is MAML. A
curvature treats them as all others, unless they ``stay`` as well.
"""

from dataclasses import dataclass
from functools import cached_property

from meta_exp.algorithms.anil import ANIL
from meta_exp.models.layers import layers_with_parameters, parameters_of


@dataclass(frozen=True, kw_only=True)
class BOIL(ANIL):
    """MAML without the adaptation of ``layers``."""

    @cached_property
    def adapted(self) -> tuple[str, ...]:
        """Names of the parameters that adapt."""
        return parameters_of(self.model, set(layers_with_parameters(self.model)) - self.chosen - self.staying)
