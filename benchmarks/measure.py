"""What the benchmarks share: our learner as train.py composes it, meta-batches of random numbers, and taking turns."""

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from rich.console import Console
from torch.utils._pytree import tree_map

from meta_exp.config.schema import constructor
from meta_exp.runs.build import build_learner, resolve
from meta_exp.runs.train import look_for_gpus_once
from meta_exp.tasks.episode import Episode, Examples
from meta_exp.tasks.stream import TaskFamily
from meta_exp.training.allocator import keep_freed_memory
from meta_exp.training.learner import Learner
from meta_exp.training.precision import set_precision

CONF = Path(__file__).parents[1] / "conf"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TURN_S = 0.05  # a turn holds as many calls as fill it: a step of a millisecond is not timed with cold caches
Step = Callable[[], object]
keep_freed_memory()  # as train.py does, and the next; learn2learn's side has the same process and the same gain
look_for_gpus_once()
Times = dict[str, list[float]]


def composed(overrides: Sequence[str]) -> DictConfig:
    """Compose train.yaml with overrides, as train.py does."""
    device = ["trainer=gpu"] if DEVICE.type == "cuda" else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["logger=none", "evaluation_steps=10", *device, *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def built(overrides: Sequence[str], compiled: bool = False) -> tuple[Learner, Episode]:
    """Return the learner of a run with ``overrides``, and a meta-batch of random numbers for it.

    What a step costs does not depend on what the batch shows, and no data set is needed.
    """
    cfg = resolve(composed(["run_dir=none", *overrides]))
    family = constructor(cfg.dataset, "dataset")()
    torch.manual_seed(0)
    # as train.py does; learn2learn's side has the same process and the same gain
    set_precision(cfg.matmul_precision, images=len(family.input_shape) == 3)
    learner = build_learner(cfg, family)
    if compiled:
        learner.gradient.compile()
    batch = random_batch(cfg.dataset, family)
    return learner.to(DEVICE), tree_map(lambda value: value.to(DEVICE), batch)


def random_batch(dataset: DictConfig, family: TaskFamily) -> Episode:
    """Return a meta-batch of the family's shapes."""
    generator = torch.Generator().manual_seed(0)
    ways, tasks = dataset.get("ways", 1), dataset.meta_batch

    def examples(points: int) -> Examples:
        x = torch.rand(tasks, points, *family.input_shape, generator=generator)
        y = torch.arange(points) % ways if family.classes else torch.rand(points, family.outputs, generator=generator)
        return Examples(x, y.repeat(tasks, *[1] * y.ndim))

    return Episode(examples(ways * dataset.shots), examples(ways * dataset.queries))


def in_turns(
    steps: dict[str, Step], seconds: float, title: str, least: int = 5, clock: Callable[[], float] = time.perf_counter
) -> Times:
    """Return the seconds that a call of each step takes by ``clock``, turn by turn.

    The steps take turns, so that whatever else the machine does falls on all of them; two calls of each, before, warm
    up and compile. Rounds go on for ``seconds``, and are ``least`` at least.
    """
    calls, times = {}, {name: [] for name in steps}
    with Console(stderr=True).status(title) as status:
        for name, step in steps.items():
            status.update(f"{title}: warming up {name}")
            step()
            calls[name] = max(1, math.ceil(TURN_S / _seconds(step, 1, clock)))
        end, rounds = time.perf_counter() + seconds, 0
        while rounds < least or time.perf_counter() < end:
            rounds += 1
            for name, step in steps.items():
                status.update(f"{title}: round {rounds}, {name}")
                times[name].append(_seconds(step, calls[name], clock))
    return times


def middle(values: Sequence[float], digits: int) -> tuple[str, str]:
    """Return the median, and the quartiles that the middle half lies between."""
    low, median, high = statistics.quantiles(values, n=4)
    return f"{median:.{digits}f}", f"{low:.{digits}f} - {high:.{digits}f}"


def ratios(times: Times, one: str, other: str) -> list[float]:
    """Return how many times as long ``one`` takes as ``other``, round by round."""
    return [a / b for a, b in zip(times[one], times[other], strict=True)]


def finish() -> None:
    """Wait for what a GPU still has to do."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def conditions() -> str:
    """Say what the figures were measured under."""
    load = os.getloadavg()[0]
    gpu = f"{torch.cuda.get_device_name()}, " if DEVICE.type == "cuda" else ""
    return (
        f"{gpu}torch {torch.__version__}, {torch.get_num_threads()} threads on {os.cpu_count()} cores, load {load:.1f}"
    )


def _seconds(step: Step, calls: int, clock: Callable[[], float]) -> float:
    started = clock()
    for _ in range(calls):
        step()
    finish()
    return (clock() - started) / calls
