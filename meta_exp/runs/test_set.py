"""The scores of a learner over the fixed test tasks: drawn, scored and forgotten batch by batch.

Training's last step and a later evaluation both call this, so that the same weights give the same digits.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import sqrt
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map_only

from meta_exp.scoring.metrics import defined, expected_calibration_error
from meta_exp.scoring.task import Scores
from meta_exp.scoring.yardstick import score, with_regret, yardstick
from meta_exp.tasks.episode import Episode
from meta_exp.tasks.foreign import Foreign, draw_with_foreign
from meta_exp.tasks.stream import EVALUATION_BATCH, TaskFamily
from meta_exp.training.learner import Learner


@torch.no_grad()
def score_tasks(
    learner: Learner, family: TaskFamily, tasks: int, device: torch.device, advance: Callable[[int], Any] | None = None
) -> Scores:
    """Score ``learner`` on the first ``tasks`` test tasks, the same for every run; all of it stays on ``device``.

    See ``score_batches``.
    """
    learner.to(device).eval()

    def evaluate(episodes: Episode, k: int, foreign: Foreign | None) -> Scores:
        return learner.evaluate(episodes, learner.evaluation_steps, learner.predictives, seed=k, foreign=foreign)

    return score_batches(evaluate, family, tasks, device, advance)


@torch.no_grad()
def score_batches(
    evaluate: Callable[[Episode, int, Foreign | None], Scores],
    family: TaskFamily,
    tasks: int,
    device: torch.device,
    advance: Callable[[int], Any] | None = None,
) -> Scores:
    """Score the first ``tasks`` test tasks by what ``evaluate`` says of batch k and its foreign points.

    Where the family has an exact predictor, that is scored beside it. ``advance`` is told the number of tasks done
    after each batch. Returns scores on the CPU.
    """
    family.to(device)
    each: dict[str, list[Tensor]] = defaultdict(list)
    pooled: dict[str, Tensor] = {}
    optimal = yardstick(family)
    for k, start in enumerate(range(0, tasks, EVALUATION_BATCH)):
        stop = min(start + EVALUATION_BATCH, tasks)
        drawn = draw_with_foreign(family, "test", start, stop)
        episodes, foreign = tree_map_only(Tensor, lambda value: value.to(device), drawn)
        scores = evaluate(episodes, k, foreign)
        if optimal:
            scores = with_regret(scores, vmap(partial(score, optimal))(episodes))
        for name, value in scores.each.items():
            each[name].append(value.cpu())
        for name, value in scores.pooled.items():
            pooled[name] = pooled.get(name, 0) + value.sum(0).cpu()
        if advance:
            advance(stop)
    return Scores({name: torch.cat(values) for name, values in each.items()}, pooled)


def summarize(scores: Scores) -> dict[str, Any]:
    """Return ``test/tasks``, and the mean and half width of the 95 % interval over tasks of each score.

    The half width is Student's, t sd / sqrt(T). A pooled score, ``<predictive>/ece``, has none. A task that has failed
    makes the mean NaN: no number says what it would have counted. A score that is defined for no task is left out:
    where a split has no more classes than a task, nothing is foreign to it.
    """
    summary: dict[str, Any] = {"test/tasks": len(next(iter(scores.each.values())))}
    for name in scores.each:
        if len(known := defined(name, scores.each)):
            summary[f"test/{name}"], summary[f"test/{name}_ci95"] = mean_and_half_width(known)
    for name, sums in scores.pooled.items():
        if "/reliability" in name:
            summary[f"test/{name.replace('reliability', 'ece')}"] = expected_calibration_error(sums)
    return summary


def mean_and_half_width(values: Tensor) -> tuple[float, float]:
    """Return the mean of task scores [T] and the half width of its 95 % interval, NaN where T < 2."""
    values = values.double()
    return float(values.mean()), half_width(float(values.std()), len(values)) if len(values) > 1 else float("nan")


def half_width(deviation: float, n: int) -> float:
    """Return the half width of Student's 95 % interval of a mean of n >= 2 values."""
    return float(stdtrit(n - 1, 0.975)) * deviation / sqrt(n)


def describe_failed(failed: Mapping[str, Sequence[int]], tasks: int) -> str:
    """Return in words which of the test tasks have failed, by predictive."""
    words = (f"{kind} {len(numbers)} ({', '.join(map(str, numbers))})" for kind, numbers in failed.items())
    return f"of {tasks} test tasks some have no prediction, and their means are NaN: {'; '.join(words)}"
