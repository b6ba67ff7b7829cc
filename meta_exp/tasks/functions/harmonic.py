"""Harmonic mixtures: y = sum over h = 1 .. harmonics of (A_h / h) sin(h f x - phase_h) + noise.

A_h ~ U[amplitude] and phase_h ~ U[phase] for each harmonic, f ~ U[frequency] for each task: periodic functions of many
shapes, of which a sinusoid is the one with a single harmonic.
"""

from dataclasses import dataclass
from math import pi

import numpy as np

from meta_exp.config.checks import require, require_at_most
from meta_exp.tasks.functions.base import Curves, CurveTasks, Range, uniform

HARMONICS = 10**3


@dataclass(frozen=True)
class Harmonic(CurveTasks):
    """Sums of sinusoids at multiples of one frequency (in radians a unit of x)."""

    harmonics: int = 2
    amplitude: Range = (0.1, 5.0)
    phase: Range = (0.0, 2 * pi)
    frequency: Range = (0.5, 1.0)

    def __post_init__(self) -> None:
        """Refuse what no family can have, and sums of nothing."""
        super().__post_init__()
        require(self.harmonics >= 1, "dataset.harmonics", "at least 1", self.harmonics)
        require_at_most(HARMONICS, "dataset.harmonics", self.harmonics)

    def curves(self, rng: np.random.Generator, tasks: int) -> Curves:
        """Draw the frequency of each task, and the amplitude and phase of each harmonic."""
        order = np.arange(1, self.harmonics + 1)
        amplitude, phase = (uniform(rng, r, tasks, self.harmonics) for r in (self.amplitude, self.phase))
        frequency = uniform(rng, self.frequency, tasks)
        return lambda x: (amplitude / order * np.sin(order * frequency * x - phase)).sum(-1, keepdims=True)
