"""Evaluate finished runs on fixed test tasks in one table, or use one run on a new task: see --help."""

import argparse
from pathlib import Path

from meta_exp import cli
from meta_exp.config.checks import require
from meta_exp.installation import typed
from meta_exp.runs.shipped import place_of

TYPED = typed("evaluate")
HELP = f"""\
Evaluate runs, or the runs of a sweep's folder, on the same test tasks:
  {TYPED} outputs/sinusoid_sweep
  {TYPED} RUN RUN test_tasks=2000 samples=50 dataset.shots=5 evaluation_steps=20
  {TYPED} RUN 'predictives=[map,linearized,sample]' curvature=diagonal
Written are results.csv, summary.csv, table.tex, report.html and pictures/: into the run's or sweep's folder, with other
settings into evaluated/SETTINGS below it, of several into outputs/comparison/TIME; or into output=FOLDER. RUN may be
meta-exp/NAME, a run that comes with the package: its results go to outputs/comparison/TIME too.

See which runs there are, and how they stand and score; nothing is computed:
  {TYPED} list                                  below outputs/, newest first
  {TYPED} list outputs/sinusoid_sweep sort=test/linearized/nll algorithm=llama seed=0 state=finished

Have runs predict together as one mixture, a row of its own: all that are named, or of a sweep those of a configuration:
  {TYPED} RUN RUN RUN ensemble=true
  {TYPED} outputs/sinusoid_sweep ensemble=true

Give an older run what today's are served with, fitted values and conformal thresholds, from now on:
  {TYPED} RUN calibrate=true

Use a run on a new task, and write predictions.csv:
  {TYPED} RUN support=seen.csv query=ask.csv    numbers: columns of x, then of y, with or without a header;
  {" " * len(TYPED)}                                       of a run on tables its columns by their names
  {TYPED} RUN support=letters query=scans       images: a folder with a sub-folder a class, and a folder

Keys for a new task:
  support, query       what the task shows and what it asks
  kind                 map, linearized or sample; linearized where the run has a curvature
  output               the file to write; predictions.csv

Keys of the run's config, in Hydra's grammar:
  test_tasks  samples  evaluation_steps  predictives  curvature  curvature.prior_precision  algorithm.inner_lr
  calibrate  validation_tasks  conformal_tasks  chunk_size  dataset.root  dataset.shots  dataset.queries
  likelihood.sigma_noise
and trust=[my_package], modules of your own whose classes the run's config may name
"""
LIST = "list"  # as the first word; a folder of that name is ./list
NEW_TASK = ("support", "query", "kind")


def command() -> None:
    """Sort the arguments; the imports stand here so that --help answers at once."""
    parser = argparse.ArgumentParser(
        usage=f"{TYPED} RUN... [key=value ...]\n       {TYPED} list [FOLDER] [sort=SCORE] [key=value ...]",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("arguments", nargs="*", metavar="RUN or key=value", help="a run's folder, or a setting")
    arguments = parser.parse_args().arguments
    if arguments[:1] == [LIST]:
        from meta_exp.comparison import listing

        listing.show(arguments[1:])
        return
    folders = [place_of(argument) for argument in arguments if "=" not in argument or Path(argument).is_dir()]
    require(bool(folders), "evaluate", "a run's folder", "none", "see --help")
    require("" not in arguments, "evaluate", "a run's folder", "an empty name", "a variable of the shell may be unset")
    overrides = [argument for argument in arguments if "=" in argument and not Path(argument).is_dir()]
    ours = dict(override.split("=", 1) for override in overrides if override.split("=", 1)[0] in (*NEW_TASK, "output"))
    overrides = [override for override in overrides if override.split("=", 1)[0] not in ours]
    if ours.keys() & set(NEW_TASK):
        together = any(words.lstrip("+").startswith("ensemble=") for words in overrides)
        require(not together, "ensemble", "a comparison of runs", "a new task, which one run answers", "leave it out")
        with cli.quick_imports():
            from meta_exp.production.command import answer
        answer(folders, overrides, **ours)
    else:
        with cli.quick_imports():
            from meta_exp.comparison.compare import compare
        if code := compare(folders, overrides, **ours):
            raise SystemExit(code)


if __name__ == "__main__":
    cli.run(command)
