"""The console command: ``meta-exp train ...`` is train.py by another door, and so are its other words."""

import sys
from difflib import get_close_matches
from runpy import run_module

COMMANDS = {
    "train": ("meta_exp.commands.train", "train, test and picture one run, or with -m a sweep"),
    "evaluate": ("meta_exp.commands.evaluate", "compare finished runs in one table, or use one on a new task"),
    "tasks": ("meta_exp.tasks", "prepare and verify a data set"),
}
HELP = "usage: meta-exp COMMAND ...\n\n" + "".join(f"  {name:10}{what}\n" for name, (_, what) in COMMANDS.items())


def main() -> None:
    """Run the module that the first word names, as ``python -m`` would, so that further processes of it find it too."""
    word, *others = sys.argv[1:] or ["--help"]
    if word in ("-h", "--help"):
        print(f"{HELP}\nmeta-exp COMMAND --help says more of each.")
        return
    if word not in COMMANDS:
        near = "".join(f"; did you mean {name}?" for name in get_close_matches(word, COMMANDS, 1))
        sys.exit(f"error: meta-exp: expected {', '.join(COMMANDS)}, got {word!r}{near}")
    sys.argv[1:] = others
    run_module(COMMANDS[word][0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
