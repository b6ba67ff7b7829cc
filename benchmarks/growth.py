"""How time and memory of a meta-gradient grow with meta-batch, shots, ways, inner steps and filters, one at a time.

    uv run python benchmarks/growth.py [--compile] [--seconds N]     measure, and write docs/growth.csv and the pictures
    uv run python benchmarks/growth.py --draw                        draw them anew from docs/growth.csv

Omniglot's shapes, conv4, the whole meta-batch at once. Each value is measured on both sides, turn by turn; peak memory
is what the meta-gradient adds to a process, in a process of its own. To compile takes half a minute for each value.
"""

import argparse
import csv
import statistics
from functools import partial
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from measure import Step, built, conditions, in_turns
from memory import peaks
from peer import Peer

DOCS = Path(__file__).parents[1] / "docs"
CSV = DOCS / "growth.csv"
BASE = {"dataset.meta_batch": 8, "dataset.shots": 1, "dataset.ways": 5, "algorithm.inner_steps": 1, "model.filters": 32}
VARIABLES = {  # key: values
    "dataset.meta_batch": (1, 2, 4, 8, 16, 32, 64),
    "dataset.shots": (1, 2, 4, 8, 16),
    "dataset.ways": (2, 5, 10, 20, 40),
    "algorithm.inner_steps": (1, 2, 4, 8),
    "model.filters": (8, 16, 32, 64, 128),
}
FIXED = ["dataset=omniglot", "dataset.queries=1", "algorithm=maml", "algorithm.inner_lr=0.1", "chunk_size=null"]
SIDES = {"learn2learn": "#b5533c", "ours, eager": "#7aa6c2", "ours, compiled": "#1f4e79"}
UNITS = {"ms": "milliseconds", "MiB": "peak memory added, MiB"}
Row = dict[str, str]


def main() -> None:
    """Measure and draw, or draw alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seconds", type=float, default=4.0, help="that the turns of a value go on for")
    parser.add_argument("--folder", type=Path, default=DOCS, help="to write to")
    arguments = parser.parse_args()
    file = arguments.folder / CSV.name
    if not arguments.draw:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["variable", "value", "side", "unit", "figure"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(measured(arguments.seconds, arguments.compile))
        print(conditions())
    rows = read(file)
    draw(rows, "ms", arguments.folder / "growth_time.png")
    draw(rows, "MiB", arguments.folder / "growth_memory.png")


def read(file: Path) -> list[Row]:
    """Return the figures of an earlier measurement."""
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def measured(seconds: float, compiled: bool) -> list[Row]:
    """Return the figures; memory first, since its processes are forks of one that has done nothing yet."""
    settings = {
        (key, value): [*FIXED, *(f"{k}={v}" for k, v in (BASE | {key: value}).items())]
        for key, values in VARIABLES.items()
        for value in values
    }
    rows = []

    def add(place: tuple[str, int], side: str, unit: str, figure: float) -> None:
        key, value = place
        rows.append({"variable": key, "value": value, "side": side, "unit": unit, "figure": f"{figure:.4g}"})

    for side in ("learn2learn", "ours, eager"):
        results = peaks([(side, overrides) for overrides in settings.values()])
        for place, (added, _) in zip(settings, results, strict=True):
            add(place, side, "MiB", added)
    for place, overrides in settings.items():
        steps: dict[str, Step] = {}
        for side in list(SIDES)[1 : 3 if compiled else 2]:
            learner, batch = built(overrides, side == "ours, compiled")
            steps[side] = partial(learner.meta_gradient, batch)
        steps["learn2learn"] = partial(Peer(learner).meta_gradient, batch)
        for side, times in in_turns(steps, seconds, f"{place[0]} {place[1]}", least=3).items():
            add(place, side, "ms", 1e3 * statistics.median(times))
    return rows


def draw(rows: list[Row], unit: str, file: Path) -> None:
    """Draw a log-log plot of one unit for each variable, with a line for what would grow in proportion."""
    plt.style.use(Path(__file__).parents[1] / "meta_exp" / "runs" / "meta_exp.mplstyle")
    figure, grid = plt.subplots(2, 3, figsize=(8, 5.2), sharey=True, layout="constrained")
    *axes, legend = grid.flat
    for ax, key in zip(axes, VARIABLES, strict=True):
        for side, color in SIDES.items():
            points = [
                (float(row["value"]), float(row["figure"]))
                for row in rows
                if (row["variable"], row["side"], row["unit"]) == (key, side, unit)
            ]
            if points:
                ax.loglog(*zip(*sorted(points), strict=True), "o-", color=color, markersize=3.5, label=side)
        _finish(ax, key)
    for ax in grid[:, 0]:
        ax.set_ylabel(UNITS[unit])
    legend.axis("off")
    handles, labels = axes[0].get_legend_handles_labels()
    legend.legend(handles, labels, loc="center left", frameon=False)
    base = ", ".join(f"{_name(key)} {value}" for key, value in BASE.items())
    figure.suptitle(f"One meta-gradient of MAML, conv4 on Omniglot's shapes; else {base}", fontsize=9)
    figure.savefig(file, dpi=200)
    plt.close(figure)


def _finish(ax: Axes, key: str) -> None:
    values = VARIABLES[key]
    ax.set_xlabel(_name(key))
    ax.set_xticks(values, [str(value) for value in values])
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    first = ax.lines[0].get_ydata()[0] if ax.lines else 1.0
    ends = (values[0], values[-1])
    ax.plot(ends, [first * value / values[0] for value in ends], ":", color="gray", linewidth=1, label="in proportion")


def _name(key: str) -> str:
    return key.split(".")[1].replace("_", " ").replace("meta batch", "meta-batch")


if __name__ == "__main__":
    main()
