"""The sinusoid family of Finn, Abbeel and Levine (2017): y = A sin(f x - phase) + noise, with f = 1 in the paper.

A ~ U[amplitude], f ~ U[frequency], phase ~ U[phase].
"""

from dataclasses import dataclass
from math import pi

import numpy as np
import torch
from torch import Tensor

from meta_exp.tasks.functions.base import Curves, CurveTasks, Range, uniform
from meta_exp.tasks.functions.prior import Prior


@dataclass(frozen=True)
class Sinusoid(CurveTasks):
    """Sinusoids of random amplitude and phase, and of random frequency (in radians a unit of x) where asked."""

    amplitude: Range = (0.1, 5.0)
    phase: Range = (0.0, pi)
    frequency: Range = (1.0, 1.0)

    def curves(self, rng: np.random.Generator, tasks: int) -> Curves:
        """Draw amplitude, phase and frequency of each task."""
        amplitude, phase, frequency = (uniform(rng, r, tasks) for r in (self.amplitude, self.phase, self.frequency))
        return lambda x: amplitude * np.sin(frequency * x - phase)

    def prior(self) -> Prior:
        """Return the prior; given frequency and phase, f is linear in the amplitude."""

        def parts(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            frequency, phase = u
            return torch.zeros_like(x), torch.sin(frequency * x - phase)[:, None]

        return Prior((self.frequency, self.phase), (self.amplitude,), parts)
