"""docs/tutorial.md from first to last: every command as a real process, shortened, every output looked for.

A shortened run has other digits: in what is shown, a number stands for any.
"""

import os
import re
import shlex
import sys
from pathlib import Path

import commands
import pytest

REPO = Path(__file__).parents[1]
PAGE = (REPO / "docs" / "tutorial.md").read_text()
SHORT = ["trainer=smoke", "logger=none", "trainer.max_steps=4", "test_tasks=10", "validation_tasks=5", "samples=3"]
NUMBER = re.compile(r"-?\d+(\.\d*)?(e[-+]\d+)?")


def shown():
    """Yield each command with the lines that the page shows below it."""
    for block in re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = part.splitlines()
            yield command, lines


def masked(line):
    return " ".join(NUMBER.sub("0", line).split()).replace("[ ", "[")


def result_of(command, folder):
    """Run one command of the page in ``folder`` and return what it says."""
    words = shlex.split(command)
    if words[0] == "ls":
        return "\n".join(path.name for path in (folder / words[1]).iterdir())
    if words[0] == "cat":
        return (folder / words[1]).read_text()
    assert words[:2] == ["uv", "run"], command
    if words[2] == "python":
        variables = {**os.environ, "PYTHONPATH": str(REPO)}
        done = commands.finished([sys.executable, *words[3:]], folder, variables)
    else:
        short = [word for word in SHORT if word.partition("=")[0] not in command] if words[2] == "train.py" else []
        rest = [re.sub(r"^trainer\.max_steps=\d+$", "trainer.max_steps=4", word) for word in words[3:]]
        done = commands.run(words[2], folder, *rest, *short)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    """A folder with the page's files: its script, and each file that it shows before a command could have made it."""
    for name, text in re.findall(r"^```python\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text)
    for command, lines in shown():
        if command.startswith("cat ") and "predictions" not in command:
            (tmp_path / command.split()[1]).write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_page_runs_as_it_stands(folder):
    outputs = 0
    for command, lines in shown():
        said = [masked(line) for line in result_of(command, folder).splitlines()]
        missing = [line for line in lines if masked(line) not in said]
        assert missing == [], f"{command} said {said}"
        outputs += len(lines)
    assert outputs > 20
    assert len(list((folder / "outputs" / "sinusoid_sweep").glob("*/metrics.json"))) == 6
    assert list((folder / "outputs" / "first" / "plots").glob("fan.png"))
