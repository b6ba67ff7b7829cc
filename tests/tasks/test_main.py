"""Preparing data from the command line: real processes, their words and their exit codes."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import commands
import pytest

from meta_exp.tasks.images.mini_imagenet import CLASSES, pickle_name


def prepare(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "meta_exp.tasks", *map(str, arguments)]
    variables = {**os.environ, "COLUMNS": "200", **environment}
    return commands.finished(command, variables=variables)


def test_omniglot_is_verified_and_counted(omniglot_root: Path) -> None:
    result = prepare("omniglot")
    assert result.returncode == 0, result.stderr
    for line in (
        "omniglot: 28 x 28 x 1",
        "│ train      │ 1100    │ 22000",
        "│ all        │ 1623    │ 32460",
        "verified, ",
    ):
        assert line in result.stdout


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    return last


@pytest.mark.parametrize("data_set", ["omniglot", "mini_imagenet"])
def test_no_data_is_one_line(data_set: str, tmp_path: Path) -> None:
    line = error_of(prepare(data_set, tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in line
    assert "MB" in line or "GB" in line


class Code:
    """What makes a folder where it is unpickled."""

    def __reduce__(self) -> object:
        return os.mkdir, ("ran",)


def test_code_is_refused_in_one_line(tmp_path: Path) -> None:
    for split in CLASSES:
        (tmp_path / pickle_name(split)).write_bytes(pickle.dumps(Code()))
    line = error_of(prepare("mini_imagenet", tmp_path, META_EXP_CACHE=str(tmp_path / "cache")))
    assert "one that would run posix.mkdir, which was refused" in line
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_full_disk_is_one_line(omniglot_root: Path, tmp_path: Path) -> None:
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5)); "
    command = limited + "runpy.run_module('meta_exp.tasks', run_name='__main__', alter_sys=True)"
    environment = {**os.environ, "META_EXP_CACHE": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    arguments = [sys.executable, "-c", command, "omniglot", str(omniglot_root)]
    result = commands.finished(arguments, variables=environment)
    assert "File too large; the data cache needs 25 MB there: make room" in error_of(result)
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".lock"]
