"""Peak memory of a meta-gradient, in a process of its own each time."""

import resource
from collections.abc import Sequence
from multiprocessing import get_context
from statistics import median

from measure import built
from peer import Peer

from meta_exp.training.learner import TRAINING

Case = tuple[str, Sequence[str]]  # ours or learn2learn; overrides
TINY = [
    "dataset.meta_batch=1",
    "dataset.ways=2",
    "dataset.shots=1",
    "dataset.queries=1",
    "model.filters=8",
    "algorithm.inner_steps=1",
]


def peaks(cases: Sequence[Case], repeats: int = 1) -> list[tuple[float, float]]:
    """Return for each case the peak in MiB that the meta-gradient and its batch add, and that of the whole process.

    They are medians of ``repeats`` processes: how the allocator's free memory lies differs from one to the next.

    What they add is counted from a process that has taken a tiny gradient already, and loaded what that takes. The
    processes are forks of this one, which has to have run nothing on PyTorch's threads yet.
    """
    with get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        results = list(pool.imap(_peak, [case for case in cases for _ in range(repeats)]))
    groups = [results[start : start + repeats] for start in range(0, len(results), repeats)]
    return [(median(added for added, _ in group), median(whole for _, whole in group)) for group in groups]


def _peak(case: Case) -> tuple[float, float]:
    side, overrides = case
    _gradient(side, [*overrides, *TINY])
    before = _resident()
    _gradient(side, overrides)
    peak = _resident()
    return peak - before, peak


def _gradient(side: str, overrides: Sequence[str]) -> None:
    learner, batch = built(overrides)
    if side == "learn2learn":
        Peer(learner).meta_gradient(batch)
    else:
        learner.meta_gradient(batch, noise=learner.path_noise(batch, (TRAINING, 0, 0)))


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
