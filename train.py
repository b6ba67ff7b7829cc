"""Train, evaluate and picture one run, or with -m a sweep: see --help."""

from meta_exp import cli
from meta_exp.commands.train import command

if __name__ == "__main__":
    cli.run(command)
