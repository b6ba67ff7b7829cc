"""An episode: what one task shows (support) and what it asks (query).

For one task of a regression family ``x`` has shape [N, *features] and ``y`` [N, d]; for classes ``y`` is [N], integers.
A meta-batch is the same structure with a leading task dimension, which only the learner adds and vmaps away.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Examples(NamedTuple):
    """Inputs ``x`` [N, *features] and targets ``y`` [N, d] or [N]."""

    x: Tensor
    y: Tensor


class Episode(NamedTuple):
    """One task, or with a leading dimension a meta-batch of tasks."""

    support: Examples
    query: Examples


class ClassEpisode(NamedTuple):
    """Episodes drawn from classes, and the numbers of their ``classes`` [tasks, ways]: of label j the j-th.

    What is learned and scored is the episode; the numbers tell which classes tasks share.
    """

    episode: Episode
    classes: NDArray[np.int64]
