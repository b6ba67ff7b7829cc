"""Every command that README and docs show: it composes, or parses, or stands here with the test that runs it."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from meta_exp.config.keys import within
from meta_exp.config.overrides import parse
from meta_exp.runs.restore import OVERRIDABLE

REPO = Path(__file__).parents[1]
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
FLAGS = ("-m", "--multirun")
OF_ONE_RUN = ("support", "query", "kind", "output", "trust", "ensemble")  # evaluate.py's own keys
EXTRAS = {"ray": "hydra_plugins.hydra_ray_launcher", "slurm": "submitit"}  # what their launchers come with
RUN_BY = {  # other commands by their first words; what needs an account or a network says so
    "uv run pytest": "tests/conftest.py",
    "uv run train.py --help": "tests/test_cli.py",
    'eval "$(uv run train.py -sc install=bash)"': "tests/test_cli.py",
    "uv run python -m meta_exp.tasks": "tests/tasks/test_main.py",
    "uv run python benchmarks/pictures.py": "tests/test_benchmarks.py",
    "uv run python predict.py": "tests/test_tutorial.py",
    "uv run python benchmarks/": "tests/test_benchmarks.py",
    "OMP_NUM_THREADS=1 uv run python benchmarks/": "tests/test_benchmarks.py",
    "uv run wandb leet": "tests/training/test_loggers.py",
    "uv run tensorboard": "tests/test_cli.py",
    "cat ": "tests/test_tutorial.py",
    "ls ": "tests/test_tutorial.py",
}
FORM = re.compile(r"=[A-Z]( |$)|\.\.\.")  # where letters or dots stand for values
NOT_HERE = {
    "pip install uv": "a network",
    "wandb sync": "an account",
    "uv run wandb sync": "an account",
    "uv run wandb sweep": "an account; tests/test_sweep_yaml.py",
    "uv run wandb agent": "an account; tests/test_sweep_yaml.py",
}


def commands_of(page):
    """Those of its console blocks, and those of our scripts that a line of text names."""
    text = page.read_text()
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    shown = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    named = [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose)]
    named = [words for words in named if re.match(r"uv run (--extra \w+ )?(train|evaluate)\.py \S", words)]
    return [*shown, *(words for words in named if not FORM.search(words))]


COMMANDS = [(page.name, command) for page in PAGES for command in commands_of(page)]


def words_of(command):
    """Return the script that a command runs and its arguments, without what is said behind a #."""
    words = shlex.split(command, comments=True)
    while "=" in words[0]:
        words.pop(0)  # a variable of the environment
    if words[:2] != ["uv", "run"]:
        return None, []
    words = words[2:]
    if words[0] == "--extra":
        words = words[2:]
    return words[0], words[1:]


def combinations(overrides):
    """Return the first and the last job of a sweep, as Hydra would start them; a single run's is one."""
    parsed = OverridesParser.create().parse_overrides(overrides)

    def job(place):
        return [
            f"{o.get_key_element()}={list(o.sweep_string_iterator())[place]}" if o.is_sweep_override() else o.input_line
            for o in parsed
        ]

    return [job(0), job(-1)] if any(o.is_sweep_override() for o in parsed) else [job(0)]


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command[:60]}" for page, command in COMMANDS])
def test_a_command_is_one(page, command):
    script, arguments = words_of(command)
    if script == "train.py" and not {"--help", "-sc"} & set(arguments):
        overrides = [word for word in arguments if word not in FLAGS]
        with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
            for job in combinations(overrides):
                try:
                    compose("train", job, return_hydra_config=True)
                except HydraException as error:
                    extra = re.search(r"--extra (\w+)", command)
                    if extra is None or "hydra/launcher" not in str(error):
                        raise
                    pytest.importorskip(EXTRAS[extra[1]])
    elif script == "evaluate.py":
        overrides = [word for word in arguments if "=" in word]
        if arguments[0] == "list":
            return  # its keys are those of configs and metrics
        assert len(overrides) < len(arguments), "a run is named"
        ours = [word for word in overrides if word.partition("=")[0] in OF_ONE_RUN]
        for override in parse([word for word in overrides if word not in ours]):
            assert within(override.key_or_group, OVERRIDABLE), override.key_or_group
    else:
        places = {words: place for words, place in {**RUN_BY, **NOT_HERE}.items() if command.startswith(words)}
        assert places, "not known: say in RUN_BY which test runs it"
        for words, place in places.items():
            assert words in NOT_HERE or (REPO / place).exists()


def test_all_pages_have_been_read():
    assert {"README.md", "tutorial.md", "sweeps.md", "extend.md", "evaluation.md", "data.md"} <= {
        page for page, _ in COMMANDS
    }
    assert len(COMMANDS) > 60
