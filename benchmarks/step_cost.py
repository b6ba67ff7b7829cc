"""The cost of a training step relative to MAML's, measured side by side: of LLAMA's curvatures, and of each algorithm.

    uv run python benchmarks/step_cost.py [CASE ...] [--compile] [--cpu] [--memory] [--rounds N]

A step here is the meta-gradient of one meta-batch of random numbers, with the noise that it draws; the ratio is the
median of a round's ratio. Algorithms do the same work, one inner step; Bayesian MAML has five particles. ``--cpu``
counts CPU time in place of the clock's, for a machine that others use: with OMP_NUM_THREADS=1, since threads that wait
count too. ``--memory`` measures in place of time the peak that an eager meta-gradient adds to a process; images alone.
"""

import argparse
import time
from functools import partial

from measure import Step, built, conditions, in_turns, middle, ratios
from memory import peaks
from rich.console import Console
from rich.table import Table

from meta_exp.tasks.episode import Episode
from meta_exp.training.learner import TRAINING, Learner

IMAGES = ["dataset=omniglot", "model=conv4", "dataset.ways=5", "dataset.shots=1", "dataset.meta_batch=8"]
MAML = ["algorithm=maml"]
Rows = dict[str, tuple[list[str], float | None]]  # what is measured: its overrides, and the ratio that is wanted if any


def llama(**wanted: float | None) -> Rows:
    """Return LLAMA's rows: one a curvature."""
    return {f"llama, {name}": (["algorithm=llama", f"curvature={name}"], goal) for name, goal in wanted.items()}


def rivals(predictive: list[str], anil: float | None) -> Rows:
    """Return a row for each other algorithm; ``predictive`` are the settings that llama_predictive needs."""
    wanted = {
        "anil": anil,
        "boil": None,
        "meta_sgd": 1.15,
        "maml_plus_plus": None,
        "reptile": 1.0,
        "abml": 2.5,
        "platipus": 2.5,
        "bmaml": 6.0,
    }
    rows: Rows = {name: ([f"algorithm={name}", "algorithm.inner_steps=1"], goal) for name, goal in wanted.items()}
    return {"llama_predictive": (["algorithm=llama_predictive", *predictive], None)} | rows


CASES: dict[str, tuple[list[str], Rows]] = {
    "sinusoid": (["dataset=sinusoid"], llama(ggn=1.4, last_layer=None, kfac=None, diagonal=None)),
    "conv4-64": ([*IMAGES, "dataset.queries=15"], llama(last_layer=1.15, kfac=1.8)),
    "conv4-64, 1 query": ([*IMAGES, "dataset.queries=1"], llama(last_layer=1.15, kfac=1.8)),
    "conv4-32, group norm": (
        [*IMAGES, "dataset.queries=15", "model.filters=32", "model.norm=group"],
        llama(last_layer=None, kfac=None, ggn=None, diagonal=None),
    ),
    "sinusoid, algorithms": (["dataset=sinusoid"], rivals([], None)),
    "conv4-64, algorithms": (
        [*IMAGES, "dataset.queries=1"],
        rivals(["curvature=last_layer", "likelihood=probit"], 0.7),
    ),
}


def main() -> None:
    """Measure the cases named on the command line, or all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {'; '.join(CASES)}; all if none is named")
    parser.add_argument("--compile", action="store_true", help="compile the meta-gradient, as long trainings do")
    parser.add_argument("--cpu", action="store_true", help="count CPU time")
    parser.add_argument("--memory", action="store_true", help="measure memory")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    unit = "MiB" if arguments.memory else "ms"
    title = "eager" if arguments.memory or not arguments.compile else "compiled"
    title += ", CPU time" if arguments.cpu and not arguments.memory else ""
    table = Table(
        "case", "algorithm", f"MAML, {unit}", f"its own, {unit}", "ratio", "middle half", "wanted", title=title
    )
    for case in arguments.cases or CASES:
        shared, rows = CASES[case]
        choices = {name: [*shared, *overrides] for name, (overrides, _) in {"maml": (MAML, None), **rows}.items()}
        if arguments.memory:
            figures = dict(zip(choices, peaks([("ours", c) for c in choices.values()], repeats=3), strict=True))
            added = {name: figure for name, (figure, _) in figures.items()}
            for name in rows:
                shares = [f"{added[which]:.0f}" for which in ("maml", name)]
                table.add_row(case, name, *shares, f"{added[name] / added['maml']:.2f}", "", "")
            continue
        steps = {name: step(overrides, arguments.compile) for name, overrides in choices.items()}
        clock = time.process_time if arguments.cpu else time.perf_counter
        times = in_turns(steps, 0.0, case, arguments.rounds, clock)
        for name, (_, wanted) in rows.items():
            milliseconds = (middle([1e3 * t for t in times[which]], 2)[0] for which in ("maml", name))
            goal = f"<= {wanted}" if wanted else ""
            table.add_row(case, name, *milliseconds, *middle(ratios(times, name, "maml"), 2), goal)
        table.add_section()
    Console(width=110).print(table)
    print(conditions())


def step(overrides: list[str], compiled: bool) -> Step:
    """Return a function that draws the noise of one batch and takes its meta-gradient."""
    learner, batch = built(overrides, compiled)
    return partial(_step, learner, batch)


def _step(learner: Learner, batch: Episode) -> object:
    return learner.meta_gradient(batch, noise=learner.path_noise(batch, (TRAINING, 0, 0)))


if __name__ == "__main__":
    main()
