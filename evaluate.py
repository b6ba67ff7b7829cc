"""Evaluate finished runs on fixed test tasks in one table, or use one run on a new task: see --help."""

from meta_exp import cli
from meta_exp.commands.evaluate import command

if __name__ == "__main__":
    cli.run(command)
