"""evaluate.py over runs: the figures that train.py wrote, to the last digit; a table, a CSV, pictures and a report."""

import csv
import json
import shutil
from pathlib import Path

import commands
import pytest
from omegaconf import OmegaConf

from meta_exp.comparison import compare as comparison

REPO = Path(__file__).parents[2]
SMALL = ["trainer=smoke", "model.widths=[8,8]", "validation_tasks=10", "test_tasks=25", "samples=3"]


@pytest.fixture
def sweep(trained, tmp_path):
    """A sweep's folder, to be written into: MAML and LLAMA with two seeds each."""
    for algorithm in ("maml", "llama"):
        for seed in (0, 1):
            keys = [f"algorithm={algorithm}", f"seed={seed}", "predictives=[map,linearized,sample]"]
            run = trained(f"comparison_{algorithm}_{seed}", *SMALL, *keys)
            shutil.copytree(run, tmp_path / "sweep" / f"{algorithm}_{seed}")
    return tmp_path / "sweep"


def test_a_sweep_with_an_unfinished_run(sweep):
    """One test for one costly sweep: exit code, table, differences, digits, files."""
    (sweep / "broken").mkdir()
    (sweep / "broken" / "train.log").write_text("started")
    result = commands.run("evaluate.py", sweep.parent, "sweep", COLUMNS="80")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "left out: sweep/broken" in result.stdout
    assert "run 5 of 5" in result.stderr
    assert "25 test tasks" in result.stdout
    for words in ("llama", "maml", "linearized", "MSE", "coverage 95 %", "AUROC foreign", "2 seeds", "llama - maml"):
        assert words in result.stdout
    with (sweep / "results.csv").open(newline="") as stream:
        rows = {Path(row["run"]).name: row for row in csv.DictReader(stream)}
    assert set(rows) == {"maml_0", "maml_1", "llama_0", "llama_1"}
    for name, row in rows.items():
        metrics = json.loads((sweep / name / "metrics.json").read_text())
        scores = {key: value for key, value in metrics.items() if key.startswith("test/")}
        assert len(scores) > 30
        assert {key: float(row[key]) for key in scores} == scores  # to the last digit
        assert row["seed"] == name[-1]
    pictures = {str(path.relative_to(sweep / "pictures")) for path in (sweep / "pictures").rglob("*.png")}
    assert {"steps_mse.png", "coverage_linearized.png", "learning.png", "tasks_1/fan.png"} <= pictures
    report = (sweep / "report.html").read_text()
    assert "maml_1" in report
    assert "expected" in report.split("Left out")[1][:500]


def test_overrides_change_what_is_evaluated_for_all_alike(sweep, capsys):
    maml = sweep / "maml_0"
    assert comparison.compare([maml], ["test_tasks=12", "curvature=diagonal", "evaluation_steps=2"]) == 0
    out = capsys.readouterr().out
    assert "12 test tasks" in out
    assert "linearized" in out  # Laplace after the fact
    assert "12 tasks" in out
    assert "_step_3" not in (maml / "results.csv").read_text()


REFUSED = {
    ("nowhere",): "nowhere: expected a run's folder, or a sweep's, got none",
    ("empty",): "empty: expected a run's folder, or a folder of runs",
    ("sweep", "model=conv4"): "model=conv4: expected curvature.* \\(and 3 more runs\\)",
    ("sweep/maml_0", "test_tasks=1"): "test_tasks: expected an integer, at least 2",
    ("sweep/maml_0", "samples=0"): "samples: expected at least 1, got 0",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_refused(sweep, monkeypatch, arguments):
    (sweep.parent / "empty").mkdir()
    monkeypatch.chdir(sweep.parent)
    with pytest.raises(ValueError, match=REFUSED[arguments]):
        comparison.compare([Path(arguments[0])], arguments[1:])


def test_refused_in_one_line(sweep):
    result = commands.run("evaluate.py", sweep, "llama_0", "dataset=omniglot")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: dataset=omniglot: expected curvature"), result.stderr
    assert "Traceback" not in result.stderr


def test_runs_with_other_numbers_of_test_tasks_are_not_mixed(sweep):
    file = sweep / "maml_1" / "config.yaml"
    file.write_text(file.read_text().replace("test_tasks: 25", "test_tasks: 20"))
    with pytest.raises(ValueError, match=r"test_tasks: expected the same number for all runs, got \[20, 25\]; add"):
        comparison.compare([sweep])


def test_nothing_is_written_through_what_a_strangers_folder_brings(sweep, tmp_path):
    """Links and pipes in the place of every file that is written, folders that are links; names that type and clear."""
    stranger = shutil.copytree(sweep / "maml_0", tmp_path / "stranger")
    victim = tmp_path / "elsewhere"
    victim.mkdir()
    (victim / "start_file").write_text("mine")
    for name in ("report.html", ".report.html.part", "results.csv.part", "pictures.part"):
        (stranger / name).symlink_to(victim / "start_file")
    (stranger / "results.csv").symlink_to(victim / "new")
    (stranger / "pictures").mkdir()
    (stranger / "pictures" / "learning.png").symlink_to(victim / "start_file")
    (stranger / "pictures" / "learning.svg").hardlink_to(victim / "start_file")
    (stranger / "pictures" / "tasks_1").symlink_to(victim)
    keys = {"=cmd|calc!A1": "=1+1", "zz\x1b[2J": "\x1b]0;owned\x07"}
    config = OmegaConf.load(stranger / "config.yaml")
    config.choices.algorithm = "=HYPERLINK(1)\x1b[2J"
    config.choices.update(keys)
    OmegaConf.save(config, stranger / "config.yaml")
    overrides = "- &a [x, x]\n- [*a, *a]\n"
    (stranger / "overrides.yaml").write_text(overrides)
    other = shutil.copytree(sweep / "maml_1", stranger.with_name("other\x1b[2J"))
    result = commands.run("evaluate.py", tmp_path, stranger, "test_tasks=4")
    assert "Traceback" not in result.stderr, result.stderr
    (stranger / "pictures" / "tasks_1").unlink()
    both = tmp_path / "both"
    both.mkdir()
    stranger.rename(both / "stranger")
    other.rename(both / other.name)
    (both / "broken\x1b[31m").mkdir()
    (both / "broken\x1b[31m" / "train.log").touch()
    (both / "pictures").symlink_to(victim)
    for _ in range(2):
        result = commands.run("evaluate.py", tmp_path, "both", "test_tasks=4")
        assert "Traceback" not in result.stderr, result.stderr
        shown = result.stdout + result.stderr
        assert "\x1b" not in shown
        if (both / "pictures").is_symlink():
            (both / "pictures").unlink()
    assert result.returncode == 1  # one is broken
    assert [path.name for path in victim.iterdir()] == ["start_file"]
    assert (victim / "start_file").read_text() == "mine"
    with (both / "results.csv").open(newline="") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert "'=1+1" in cells
    assert "'=HYPERLINK(1)\\x1b[2J" in cells
    assert not any(cell.startswith(("=", "@")) for cell in cells)
