"""The cost of LLAMA's training step relative to MAML's, curvature by curvature, measured side by side.

    uv run python benchmarks/step_cost.py [CASE ...] [--compile] [--rounds N]

A step here is the meta-gradient of one meta-batch. The algorithms take turns, so that whatever else the machine does
falls on all of them; the ratio is the median over rounds of a round's ratio. Batches are random numbers: the cost does
not depend on what they show, and no data set is needed.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from rich.console import Console
from rich.progress import track
from rich.table import Table

from meta_exp.runs import build_learner
from meta_exp.schema import constructor
from meta_exp.tasks.episode import Episode, Examples

CONF = Path(__file__).parents[1] / "conf"
IMAGES = ["dataset=omniglot", "model=conv4", "dataset.ways=5", "dataset.shots=1"]
CASES = {  # overrides of the case; the curvatures to measure, with the ratio that is wanted where there is one
    "sinusoid": (["dataset=sinusoid"], {"ggn": 1.6, "last_layer": None, "kfac": None, "diagonal": None}),
    "conv4-64": ([*IMAGES, "dataset.queries=15", "dataset.meta_batch=8"], {"last_layer": 1.3, "kfac": 2.5}),
    "conv4-64, 1 query": ([*IMAGES, "dataset.queries=1", "dataset.meta_batch=8"], {"last_layer": None, "kfac": None}),
    "conv4-32, group norm": (
        [*IMAGES, "dataset.queries=15", "dataset.meta_batch=8", "model.filters=32", "model.norm=group"],
        {"last_layer": None, "kfac": None, "ggn": None, "diagonal": None},
    ),
}


def main() -> None:
    """Measure the cases named on the command line, or all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all if none is named")
    parser.add_argument("--compile", action="store_true", help="compile the meta-gradient, as long trainings do")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    title = (
        f"{'compiled' if arguments.compile else 'eager'}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    table = Table("case", "curvature", "MAML, ms", "LLAMA, ms", "ratio", "middle half", "wanted", title=title)
    for case in arguments.cases or CASES:
        overrides, curvatures = CASES[case]
        names = ["maml", *curvatures]
        steps = {name: step(overrides, name, arguments.compile) for name in names}
        times = measure(steps, arguments.rounds, case)
        for name, wanted in curvatures.items():
            ratios = [a / b for a, b in zip(times[name], times["maml"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            milliseconds = (f"{1e3 * statistics.median(times[which]):.2f}" for which in ("maml", name))
            goal = f"<= {wanted}" if wanted else ""
            table.add_row(case, name, *milliseconds, f"{middle:.2f}", f"{low:.2f} - {high:.2f}", goal)
        table.add_section()
    Console(width=110).print(table)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def step(overrides: list[str], name: str, compiled: bool) -> Callable[[], object]:
    """Return a function that takes the meta-gradient of one batch, by MAML or by LLAMA with the curvature ``name``."""
    choice = ["algorithm=maml"] if name == "maml" else ["algorithm=llama", f"curvature={name}"]
    cfg = composed([*overrides, *choice])
    family = constructor(cfg.dataset, "dataset")()
    learner = build_learner(cfg, family)
    if compiled:
        learner.gradient.compile()
    d = cfg.dataset
    ways = d.get("ways", 1)
    sizes = [ways * d.shots, ways * d.queries]
    generator = torch.Generator().manual_seed(0)

    def examples(points: int) -> Examples:
        x = torch.rand(d.meta_batch, points, *family.input_shape, generator=generator)
        y = torch.arange(points) % ways if family.classes else torch.rand(points, family.outputs, generator=generator)
        return Examples(x, y.expand(d.meta_batch, *y.shape))

    batch = Episode(*(examples(points) for points in sizes))
    return lambda: learner.meta_gradient(batch)


def composed(overrides: list[str]) -> DictConfig:
    """Compose train.yaml with overrides, as train.py does."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*overrides, "logger=none"], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def measure(steps: dict[str, Callable[[], object]], rounds: int, case: str) -> dict[str, list[float]]:
    """Return the seconds that each step takes in each round, after two rounds to warm up (and to compile)."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    console = Console(stderr=True)
    for _ in track(range(rounds + 2), case, console=console, transient=True):
        for name, take in steps.items():
            started = time.perf_counter()
            take()
            times[name].append(time.perf_counter() - started)
    return {name: seconds[2:] for name, seconds in times.items()}


if __name__ == "__main__":
    main()
