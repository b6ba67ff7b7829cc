"""What made each part of a run stands in its folder, and a change is said."""

import json
import logging
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from meta_exp.runs import provenance
from meta_exp.runs.train import train

TINY = [
    "trainer=smoke",
    "model.widths=[8]",
    "dataset.meta_batch=5",
    "test_tasks=4",
    "validation_tasks=4",
    "logger=none",
]


def parts(folder):
    return [json.loads(line) for line in (folder / provenance.MADE_BY).read_text().splitlines()]


def test_a_part_is_noted_where_something_changed(tmp_path, monkeypatch):
    made = {"git_commit": "a", "version/torch": "2"}
    monkeypatch.setattr(provenance, "provenance", lambda: dict(made))
    assert provenance.note_part(tmp_path, 0) == []
    assert provenance.note_part(tmp_path, 5) == []
    made["git_commit"] = "b"
    assert provenance.note_part(tmp_path, 7) == ["git_commit=a, now b"]
    made["version/torch"] = None
    assert provenance.note_part(tmp_path, 9) == ["version/torch=2, now None"]
    assert [(part["step"], part["git_commit"], part["version/torch"]) for part in parts(tmp_path)] == [
        (0, "a", "2"), (7, "b", "2"), (9, "b", None),
    ]  # fmt: skip
    made["git_commit"] = "c"
    assert provenance.note_part(tmp_path, 8) == ["git_commit=b, now c", "version/torch=2, now None"]
    assert [part["step"] for part in parts(tmp_path)] == [0, 7, 8]
    assert provenance.note_part(tmp_path, 0) == []
    assert [part["step"] for part in parts(tmp_path)] == [0], "begun anew"


@pytest.mark.parametrize("text", ["{", "[]", "5\n{}", '{"step": "a"}', ""])
def test_a_damaged_note_stops_nothing(tmp_path, text):
    (tmp_path / provenance.MADE_BY).write_text(text)
    assert provenance.note_part(tmp_path, 3) == []
    assert [part["step"] for part in parts(tmp_path)] == [3]


def test_a_run_that_goes_on_under_another_commit_says_so(config, monkeypatch, caplog):
    cfg = config(*TINY, "callbacks.last.every_n_steps=2")
    folder = Path(cfg.run_dir)
    with caplog.at_level(logging.WARNING):
        train(cfg)
        assert "other code" not in caplog.text
        (folder / "metrics.json").unlink()
        here = provenance.provenance()
        monkeypatch.setattr(provenance, "provenance", lambda: here | {"git_commit": "another"})
        train(cfg)
    assert caplog.text.count("continued under other code or packages, so not bit by bit: git_commit=") == 1
    assert [part["git_commit"] for part in parts(folder)] == [here["git_commit"], "another"]


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git here")
def test_the_commit_of_a_checkout_that_is_another_users(tmp_path, monkeypatch):
    """Git takes the owner for another one, as on a machine that several share."""
    run = {"cwd": tmp_path, "check": True, "capture_output": True}
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "init"], **run)
    subprocess.run(["git", *author, "commit", "--allow-empty", "-m", "a"], **run)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "file.py"))
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    refused = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, check=False)
    assert b"dubious ownership" in refused.stderr
    assert re.fullmatch("[0-9a-f]{40}", provenance.provenance()["git_commit"])
