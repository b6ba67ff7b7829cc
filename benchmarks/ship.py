"""Ship a trained run with the package, as meta-exp/NAME, which meta_exp.load and evaluate.py find.

    uv run python benchmarks/ship.py RUN NAME     the finished run in the folder RUN, in place of an earlier one
    uv run python benchmarks/ship.py              the cards of all shipped runs, written anew

meta_exp/trained/NAME then holds what loading needs: config, weights, result and calibration, with no path of this
machine; the overrides of its command; and README.md, a card with protocol and scores, made of the files beside it.
"""

import argparse
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from meta_exp.config.checks import require
from meta_exp.config.keys import NOT_IN_NAME, within
from meta_exp.files import write_whole
from meta_exp.production.predictor import load
from meta_exp.runs.fit import keep
from meta_exp.runs.restore import open_run
from meta_exp.runs.saved import read_config, read_overrides, snapshot
from meta_exp.runs.shipped import PREFIX, SHIPPED
from meta_exp.runs.train import read_metrics
from meta_exp.terminal import plus_minus

LARGEST = 3 * 10**6  # bytes of all shipped runs
CARD = "README.md"
SCORES = {  # of the predictive that is served, by what a reader calls them
    "accuracy": "accuracy",
    "mse": "MSE",
    "nll": "NLL per point",
    "regret": "regret: NLL above that of the best possible predictor",
    "ece": "ECE",
    "coverage_95": "coverage of 95 %",
    "conformal_coverage_90": "conformal coverage of 90 %",
}
NOT_TASKS = ("_target_", "root", "download", "queries", "meta_batch")
OTHERS = tuple(key for key in NOT_IN_NAME if key != "experiment")  # words of a command: where it was run and watched


def main() -> None:
    """Ship the run that is named, or write all cards anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="a finished run's folder")
    parser.add_argument("name", nargs="?", help="small letters, digits and hyphens")
    parser.add_argument("--folder", type=Path, default=SHIPPED, help="that holds the shipped runs")
    arguments = parser.parse_args()
    if arguments.run is None:
        for file in sorted(arguments.folder.glob("*/config.yaml")):
            write_whole(file.parent / CARD, card(file.parent))
            print(f"written: {file.parent / CARD}")
        return
    print(f"shipped: {ship(arguments.run, arguments.name or '', arguments.folder)}")


def ship(run: Path, name: str, place: Path = SHIPPED) -> Path:
    """Write the run into ``place``/``name`` and return that folder; raises ValueError where it does not fit."""
    require(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name) is not None, "NAME", "small letters, digits, hyphens", name)
    restored, folder = open_run(run), place / name
    draft = place / f".{name}"
    shutil.rmtree(draft, ignore_errors=True)
    cfg = restored.cfg.copy()
    cfg.logger = {}
    if "root" in cfg.dataset:
        cfg.dataset.root = "data"
    keep(replace(restored, cfg=cfg), draft)
    cfg = read_config(draft / "config.yaml")
    cfg.run_dir = f"{PREFIX}/{name}"
    cfg.run_name = name
    write_whole(draft / "config.yaml", snapshot(cfg))
    overrides = [words for words in read_overrides(run) if not within(words.partition("=")[0], OTHERS)]
    write_whole(draft / "overrides.yaml", yaml.safe_dump(overrides))
    write_whole(draft / CARD, card(draft, name))
    load(draft)
    others = [file for file in place.rglob("*") if file.is_file() and not file.is_relative_to(folder)]
    size = sum(file.stat().st_size for file in others)
    if size > LARGEST:
        shutil.rmtree(draft)
        require(False, str(place), f"at most {LARGEST} bytes in all", size)
    shutil.rmtree(folder, ignore_errors=True)
    return draft.rename(folder)


def card(folder: Path, name: str = "") -> str:
    """Return what README.md of a shipped run says, from its config and result."""
    name, metrics = name or folder.name, read_metrics(folder / "metrics.json")
    cfg: Any = OmegaConf.to_container(read_config(folder / "config.yaml"))
    chosen, tasks = cfg["choices"], cfg["dataset"]
    served = load(folder).kinds[-1]
    curvature = "" if chosen["curvature"] in (None, "none") else f", curvature `{chosen['curvature']}`"
    asked = {key.removeprefix("protocol/"): value for key, value in metrics.items() if key.startswith("protocol/")}
    words = [str(word) for word in yaml.safe_load((folder / "overrides.yaml").read_text())]
    rows = []
    for score, title in SCORES.items():
        if f"test/{served}/{score}" in metrics:
            value, half = metrics[f"test/{served}/{score}"], metrics.get(f"test/{served}/{score}_ci95")
            rows.append(f"| {title} | {f'{value:.4f}' if half is None else plus_minus(value, half)} |")
    made = [f"{key.removeprefix('version/')} {value}" for key, value in metrics.items() if key.startswith("version/")]
    lines = [
        f"# {PREFIX}/{name}",
        "",
        f"`{chosen['algorithm']}` on `{chosen['dataset']}`, `{chosen['model']}`{curvature}, seed {cfg['seed']}:",
        f"{metrics['parameters']} parameters, {metrics['steps']} steps of {tasks['meta_batch']} tasks.",
        f"The weights are those of step {metrics['best_step']}, the best of validation.",
        "",
        "```python",
        f'learner = meta_exp.load("{PREFIX}/{name}")',
        "```",
        "",
        "Made by",
        "",
        "```console",
        f"$ uv run train.py {shlex.join(words)}".rstrip(),
        "```",
        "",
        "| tasks | |",
        "|---|---|",
        *(f"| {key} | {_words(value)} |" for key, value in tasks.items() if key not in NOT_TASKS),
        "",
        "| protocol of the test | |",
        "|---|---|",
        *(f"| {key} | {_words(value)} |" for key, value in asked.items()),
        "",
        f"| `{served}`, as served | mean ± half width of the 95 % interval over tasks |",
        "|---|---|",
        *rows,
        "",
        f"With {', '.join(made)}; commit {metrics.get('git_commit') or 'unknown'}.",
        "",
    ]
    return "\n".join(lines)


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(f"{part:g}" for part in value) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    main()
