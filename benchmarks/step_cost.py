"""The cost of LLAMA's training step relative to MAML's, curvature by curvature, measured side by side.

    uv run python benchmarks/step_cost.py [CASE ...] [--compile] [--rounds N]

A step here is the meta-gradient of one meta-batch of random numbers; the ratio is the median of a round's ratio.
"""

import argparse
from functools import partial

from measure import Step, built, conditions, in_turns, middle, ratios
from rich.console import Console
from rich.table import Table

IMAGES = ["dataset=omniglot", "model=conv4", "dataset.ways=5", "dataset.shots=1"]
CASES = {  # overrides of the case; the curvatures to measure, with the ratio that is wanted where there is one
    "sinusoid": (["dataset=sinusoid"], {"ggn": 1.4, "last_layer": None, "kfac": None, "diagonal": None}),
    "conv4-64": ([*IMAGES, "dataset.queries=15", "dataset.meta_batch=8"], {"last_layer": 1.15, "kfac": 1.8}),
    "conv4-64, 1 query": ([*IMAGES, "dataset.queries=1", "dataset.meta_batch=8"], {"last_layer": 1.15, "kfac": 1.8}),
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
    title = "compiled" if arguments.compile else "eager"
    table = Table("case", "curvature", "MAML, ms", "LLAMA, ms", "ratio", "middle half", "wanted", title=title)
    for case in arguments.cases or CASES:
        overrides, curvatures = CASES[case]
        steps = {name: step(overrides, name, arguments.compile) for name in ("maml", *curvatures)}
        times = in_turns(steps, 0.0, case, arguments.rounds)
        for name, wanted in curvatures.items():
            milliseconds = (middle([1e3 * t for t in times[which]], 2)[0] for which in ("maml", name))
            goal = f"<= {wanted}" if wanted else ""
            table.add_row(case, name, *milliseconds, *middle(ratios(times, name, "maml"), 2), goal)
        table.add_section()
    Console(width=110).print(table)
    print(conditions())


def step(overrides: list[str], name: str, compiled: bool) -> Step:
    """Return a function that takes the meta-gradient of one batch, by MAML or by LLAMA with the curvature ``name``."""
    choice = ["algorithm=maml"] if name == "maml" else ["algorithm=llama", f"curvature={name}"]
    learner, batch = built([*overrides, *choice], compiled)
    return partial(learner.meta_gradient, batch)


if __name__ == "__main__":
    main()
