r"""The schedule of the outer loop's learning rates: a factor of all of them at step k of K.

    factor = min(1, (k + 1) / (warmup + 1)) (final + (1 - final) (1 + cos(pi p)) / 2)
    p = (k - warmup) / (K - warmup), from 0 to 1

A constant rate keeps theta moving around what it has learned; one that falls lets it settle there, so that the last
weights differ less from check to check and from seed to seed.
"""

from dataclasses import dataclass
from math import cos, pi

from meta_exp.config.checks import require, require_at_most

WARMUP = 10**9  # steps


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Rates that rise over ``warmup`` steps, and fall along half a cosine to the share ``final`` of them."""

    warmup: int = 0
    final: float = 0.1

    def __post_init__(self) -> None:
        """Refuse a negative number of steps, and a share beyond 0 and 1."""
        require(self.warmup >= 0, "lr_schedule.warmup", "at least 0 steps", self.warmup)
        require_at_most(WARMUP, "lr_schedule.warmup", self.warmup)
        require(0 <= self.final <= 1, "lr_schedule.final", "a share of the learning rate from 0 to 1", self.final)

    def factor(self, step: int, steps: int) -> float:
        """Return the factor at step ``step``, counted from 0, of ``steps`` in all."""
        risen = min(1.0, (step + 1) / (self.warmup + 1))
        progress = min(1.0, max(0, step - self.warmup) / max(1, steps - self.warmup))
        return risen * (self.final + (1 - self.final) * (1 + cos(pi * progress)) / 2)
