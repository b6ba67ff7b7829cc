"""The prior of a family's functions, in the form in which its posterior can be computed.

f(x) = offset(x; u) + sum_j basis_j(x; u) c_j with u and c uniform in their ranges. At each x at most one column of the
basis is not zero. Given u, the posterior of each c_j is then a truncated Gaussian, and u alone is left to numerical
integration.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prior:
    """Ranges of ``nonlinear`` parameters u [D] and of ``linear`` coefficients c [J], and the function's ``parts``.

    ``parts`` takes inputs [N] and u [D] and returns the offset [N] and the basis [N, J]. Where f ``jumps``, u is one
    number and f depends on it only by the inputs that lie below it.
    """

    nonlinear: tuple[tuple[float, float], ...]
    linear: tuple[tuple[float, float], ...]
    parts: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    jumps: bool = False
