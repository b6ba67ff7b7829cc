"""All pictures of README and docs, drawn by today's code.

    uv run python benchmarks/pictures.py                          train what they need, half an hour, and draw them
    uv run python benchmarks/pictures.py sinusoid_noisy=RUN ...   draw from runs that are there
    uv run python benchmarks/pictures.py --only sinusoid_noisy growth_time

Runs stand in outputs/pictures/, where the same command continues them. The two of growth come of docs/growth.csv,
which benchmarks/growth.py measures.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import growth

from meta_exp.config.checks import require
from meta_exp.runs import pictures
from meta_exp.runs.restore import open_run

REPO = Path(__file__).parents[1]
RUNS = Path("outputs", "pictures")
EXPERIMENTS = {"sinusoid_noisy": "sinusoid_noisy", "omniglot_5way_1shot": "omniglot_5way_1shot_predictive"}
MEASURED = {"growth_time": "ms", "growth_memory": "MiB"}


def main() -> None:
    """Draw each picture, after the training of those whose run is not given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="PICTURE=RUN", help="finished runs to draw from")
    parser.add_argument("--only", nargs="+", choices=[*EXPERIMENTS, *MEASURED], default=[*EXPERIMENTS, *MEASURED])
    parser.add_argument("--folder", type=Path, default=REPO / "docs", help="to write to")
    arguments = parser.parse_args()
    given = dict(words.partition("=")[::2] for words in arguments.runs)
    unknown = [name for name in given if name not in EXPERIMENTS]
    require(not unknown, "PICTURE", f"one of {', '.join(EXPERIMENTS)}", ", ".join(unknown))
    for name in arguments.only:
        file = arguments.folder / f"{name}.png"
        if name in MEASURED:
            growth.draw(growth.read(growth.CSV), MEASURED[name], file)
        else:
            draw(Path(given[name]) if name in given else trained(EXPERIMENTS[name]), file)
        print(f"drawn: {file}")


def trained(experiment: str) -> Path:
    """Return the folder of the finished run of an experiment, trained here where it is not."""
    folder = RUNS / experiment
    words = [sys.executable, str(REPO / "train.py"), f"experiment={experiment}", "logger=none"]
    subprocess.run([*words, f"hydra.run.dir={folder}"], check=True)
    return folder


def draw(run: Path, file: Path) -> None:
    """Draw what the run makes of new tasks into ``file``, whose title says which run it is."""
    restored = open_run(run)
    cfg = restored.cfg
    title = f"{cfg.choices.algorithm} on {cfg.choices.dataset}: experiment={cfg.name}, seed {cfg.seed}"
    for drawn in pictures.draw(restored.learner, restored.family, title, file.parent / f".{file.stem}"):
        if drawn.suffix == file.suffix:
            drawn.replace(file)
        drawn.unlink(missing_ok=True)
    (file.parent / f".{file.stem}").rmdir()


if __name__ == "__main__":
    main()
