"""evaluate.py over runs: the figures that train.py wrote, to the last digit; a table, a CSV, pictures and a report."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import commands
import pytest
from omegaconf import OmegaConf

from meta_exp.comparison import compare as comparison

REPO = Path(__file__).parents[2]


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out pictures and report, which take longer than all else, where a test looks at neither."""
    monkeypatch.setattr(comparison, "_draw", lambda *arguments: {})
    monkeypatch.setattr(comparison.plots, "draw_charts", lambda *arguments: {})
    monkeypatch.setattr(comparison.report, "write", lambda *arguments: None)


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
    with (sweep / "summary.csv").open(newline="") as stream:
        lines = [(line["choices.algorithm"], line["predictive"], line["over"]) for line in csv.DictReader(stream)]
    rows = [("llama", "map"), ("llama", "sample"), ("llama", "linearized"), ("maml", "map")]
    assert lines == [(*row, "2 seeds") for row in rows]
    figures = re.findall(r"\$(\S+ \\pm \S+)\$", (sweep / "table.tex").read_text())
    assert len(figures) >= 4 * 4
    assert all(figure.replace(r"\pm", "±") in result.stdout for figure in figures)
    pictures = {str(path.relative_to(sweep / "pictures")) for path in (sweep / "pictures").rglob("*.png")}
    assert {"steps_mse.png", "coverage_linearized.png", "learning.png", "tasks_maml_seed_0/fan.png"} <= pictures
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
    folder = maml / "evaluated" / "curvature-diagonal__evaluation_steps-2__test_tasks-12"
    assert "_step_3" not in (folder / "results.csv").read_text()


REFUSED = {
    ("nowhere",): "nowhere: expected a run's folder, or a sweep's, got none",
    ("empty",): "empty: expected a run's folder, or a folder of runs",
    ("sweep", "model=conv4"): "model=conv4: expected curvature.* \\(and 3 more runs\\)",
    ("sweep/maml_0", "test_tasks=1"): "test_tasks: expected a",
    ("sweep/maml_0", "test_tasks=2147483648"): r"test_tasks: expected at most 1e\+07, got 2147483648",
    ("sweep/maml_0", "conformal_tasks=2147483648"): r"conformal_tasks: expected at most 1e\+07",
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


def test_runs_with_other_numbers_of_test_tasks_are_refused_before_any_is_scored(sweep, monkeypatch):
    file = sweep / "maml_1" / "config.yaml"
    file.write_text(file.read_text().replace("test_tasks: 25", "test_tasks: 20"))
    monkeypatch.setattr(comparison, "score_tasks", None)
    message = r"test_tasks: expected the same number for all runs, got \[20, 25\]; add test_tasks=25; .*maml_1 differs"
    with pytest.raises(ValueError, match=message):
        comparison.compare([sweep])


def test_mixed_protocols_are_said_in_one_line(sweep, tmp_path, capsys):
    """On the terminal and in the report; runs of one protocol leave no word of it."""
    file = sweep / "maml_1" / "config.yaml"
    file.write_text(file.read_text().replace("evaluation_steps: 10", "evaluation_steps: 2"))
    assert comparison.compare([sweep / "maml_0", sweep / "llama_0"], output=str(tmp_path / "alike")) == 0
    assert "protocols are" not in capsys.readouterr().out
    assert "protocols are" not in (tmp_path / "alike" / "report.html").read_text()
    assert comparison.compare([sweep / "maml_1", sweep / "llama_0"], output=str(tmp_path / "mixed")) == 0
    words = "protocols are mixed, and figures compare only where they are alike: steps 2, 10"
    assert words in capsys.readouterr().out.splitlines()
    assert words in (tmp_path / "mixed" / "report.html").read_text()


def edit(change):
    def damage(folder):
        cfg = OmegaConf.load(folder / "config.yaml")
        change(cfg)
        OmegaConf.save(cfg, folder / "config.yaml")

    return damage


def text(name, words):
    return lambda folder: (folder / name).write_text(words)


DAMAGED = {
    "deep": (text("metrics.json", "[" * 100_000), "metrics.json: expected the metrics of a run, got"),
    "deep_value": (text("metrics.json", '{"a":' + "[" * 100_000), "metrics.json: expected the metrics of a run, got"),
    "empty": (text("metrics.json", ""), "metrics.json: expected the metrics of a run, got"),
    "list": (text("metrics.json", "[]"), "metrics.json: expected the metrics of a run, got list"),
    "binary": (lambda folder: (folder / "metrics.json").write_bytes(b"\xff\xfe\x00"), "metrics.json: expected"),
    "seed": (edit(lambda cfg: cfg.update(seed=None)), "seed: expected a valid integer, got None"),
    "seed_half": (edit(lambda cfg: cfg.update(seed=1.5)), "seed: expected a valid integer, got 1.5"),
    "seed_list": (edit(lambda cfg: cfg.update(seed=[1])), "seed: expected a valid integer, got [1]"),
    "no_seed": (edit(lambda cfg: cfg.pop("seed")), "got no seed"),
    "no_tasks": (edit(lambda cfg: cfg.pop("test_tasks")), "test_tasks"),
    "tasks": (edit(lambda cfg: cfg.update(test_tasks="many")), "test_tasks: expected a"),
    "choices": (edit(lambda cfg: cfg.update(choices={})), "choices"),
    "choices_list": (edit(lambda cfg: cfg.update(choices=[1])), "choices"),
    "choices_none": (edit(lambda cfg: cfg.update(choices=None)), "choices"),
    "dataset": (edit(lambda cfg: cfg.update(dataset=5)), "dataset"),
    "model": (edit(lambda cfg: cfg.update(model=None)), "model"),
    "widths": (edit(lambda cfg: cfg.model.update(widths=[8, 9])), "best.ckpt: expected"),
    "algorithm": (edit(lambda cfg: cfg.pop("algorithm")), "no algorithm"),
    "curve": (text("curves.csv", "step,validation/loss\n1,many\n"), "curves.csv"),
    "curve_steps": (text("curves.csv", "validation/loss\n1\n"), "curves.csv"),
    "curve_cells": (text("curves.csv", "step,validation/loss\n1,2,3,4\n"), "curves.csv"),
    "checkpoint": (lambda folder: os.truncate(folder / "best.ckpt", 5000), "best.ckpt: expected a checkpoint"),
    "no_checkpoint": (lambda folder: (folder / "best.ckpt").unlink(), "best.ckpt: expected"),
    "folder": (lambda folder: ((folder / "config.yaml").unlink(), (folder / "config.yaml").mkdir()), "config.yaml"),
    "calibration": (text("calibration.json", "[" * 100_000), "calibration.json: expected"),
    "calibration_empty": (text("calibration.json", ""), "calibration.json: expected"),
}


def test_a_damaged_run_is_left_out_whatever_is_wrong_with_it(sweep, capsys, monkeypatch):
    """And the others are compared: all of these beside four whole ones, and one that fails while it is scored."""
    for name, (damage, _) in DAMAGED.items():
        damage(shutil.copytree(sweep / "maml_0", sweep / f"x_{name}"))
    scored = comparison.score_tasks

    failures = [KeyError("lost")]

    def fail_once(*arguments):
        if failures:
            raise failures.pop()
        return scored(*arguments)

    shutil.copytree(sweep / "maml_0", sweep / "a_fails")
    edit(lambda cfg: cfg.update(seed=7))(sweep / "a_fails")
    monkeypatch.setattr(comparison, "score_tasks", fail_once)
    assert comparison.compare([sweep]) == 1
    said = dict(re.findall(r"^left out: .*/sweep/(\w+): (.*)$", capsys.readouterr().out, re.MULTILINE))
    assert said.pop("a_fails") == "KeyError: 'lost'"
    assert said.keys() == {f"x_{name}" for name in DAMAGED}
    for name, (_, reason) in DAMAGED.items():
        assert reason in said[f"x_{name}"], name
    with (sweep / "results.csv").open(newline="") as stream:
        assert [Path(row["run"]).name for row in csv.DictReader(stream)] == ["llama_0", "llama_1", "maml_0", "maml_1"]


def test_a_number_that_no_float_holds_is_a_word(sweep, capsys):
    """It stands in the label of each of two configurations."""
    edit(lambda cfg: cfg.update(colour=10**400))(sweep / "maml_0")
    edit(lambda cfg: cfg.update(colour=float("nan")))(sweep / "maml_1")
    assert comparison.compare([sweep]) == 0
    assert "nan" in capsys.readouterr().out


def test_a_run_that_was_trained_twice_counts_once_and_that_is_said(sweep, capsys):
    """As the two sweeps of one folder make it, whose overrides are others and whose configs are not."""
    again = shutil.copytree(sweep / "llama_1", sweep / "llama_1_again")
    assert comparison.compare([sweep]) == 0
    out = capsys.readouterr().out
    line = f"trained twice: {sweep / 'llama_1'}: the same config and seed as {again}, which counts"
    assert line in out.splitlines()
    assert line.partition(": ")[2].split(": ")[1] in (sweep / "report.html").read_text()
    with (sweep / "results.csv").open(newline="") as stream:
        rows = [Path(row["run"]).name for row in csv.DictReader(stream)]
    assert rows == ["llama_0", "llama_1_again", "maml_0", "maml_1"]


def test_results_of_other_settings_stand_beside(sweep, capsys):
    maml = sweep / "maml_0"
    assert comparison.compare([maml]) == 0
    plain = {name: (maml / name).read_bytes() for name in ("results.csv", "report.html")}
    for overrides, name in (
        (["test_tasks=12"], "test_tasks-12"),
        (["samples=4", "curvature=diagonal"], "curvature-diagonal__samples-4"),
        (["calibrate=null"], "calibrate-null"),
    ):
        assert comparison.compare([maml], overrides) == 0
        folder = maml / "evaluated" / name
        assert {"results.csv", "report.html", "pictures"} <= {path.name for path in folder.iterdir()}
        with (folder / "results.csv").open(newline="") as stream:
            assert {row["evaluated_with"] for row in csv.DictReader(stream)} == {" ".join(overrides)}
        assert f"evaluated with {' '.join(overrides)}" in capsys.readouterr().out
    assert {name: (maml / name).read_bytes() for name in plain} == plain
    with (maml / "results.csv").open(newline="") as stream:
        assert {row["evaluated_with"] for row in csv.DictReader(stream)} == {""}


@pytest.mark.usefixtures("undrawn")
def test_nothing_that_stood_in_a_results_csv_is_lost(sweep, tmp_path, capsys):
    """The same runs again, and more runs, replace it; other runs, settings or digits keep it under another name."""
    out = tmp_path / "out"

    def compare(*names, overrides=()):
        runs = [sweep / name for name in names]
        assert comparison.compare(runs, overrides, str(out)) == 0
        return sorted(path.name for path in out.glob("results*.csv"))

    assert compare("maml_0", "maml_1") == ["results.csv"]
    first = (out / "results.csv").read_text()
    assert compare("maml_0", "maml_1") == ["results.csv"]
    assert "kept" not in capsys.readouterr().out
    assert compare("maml_0", "maml_1", overrides=["test_tasks=12"]) == ["results.csv", "results_1.csv"]
    assert f"is {out / 'results_1.csv'}" in capsys.readouterr().out
    assert (out / "results_1.csv").read_text() == first
    assert compare("llama_0") == ["results.csv", "results_1.csv", "results_2.csv"]
    (out / "results_3.csv").symlink_to(tmp_path / "nowhere")
    (out / "results.csv").write_text("mine\n")
    assert compare("llama_0")[-1] == "results_4.csv"
    assert (out / "results_4.csv").read_text() == "mine\n"


def test_where_files_land(sweep, tmp_path):
    """Of several runs below outputs/, and never in the working folder; output= says where, and is looked at first."""
    place = tmp_path / "work"
    place.mkdir()
    result = commands.run("evaluate.py", place, sweep / "maml_0", sweep / "llama_0")
    assert result.returncode == 0, result.stderr
    assert [path.name for path in place.iterdir()] == ["outputs"]
    [folder] = (place / "outputs" / "comparison").iterdir()
    files = {"results.csv", "summary.csv", "table.tex", "report.html", "pictures"}
    assert {path.name for path in folder.iterdir()} == files
    (place / "linked").symlink_to(sweep / "maml_0")  # the user's own
    result = commands.run("evaluate.py", place, "linked", "test_tasks=12", "output=~/mine", HOME=str(place))
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (place / "mine").iterdir()} == files
    assert commands.run("evaluate.py", place, "linked").returncode == 0
    assert (sweep / "maml_0" / "results.csv").exists()
    (place / "file").write_text("mine")
    for output, reason in (("file", "a folder to write into, got a file"), ("", "got nothing"), ("file/a", "file")):
        result = commands.run("evaluate.py", place, "linked", f"output={output}")
        assert result.returncode == 1
        assert reason in result.stderr.splitlines()[-1]
        assert "run 1 of 1" not in result.stderr, "refused before it is scored"


def test_a_folder_that_cannot_be_written_is_said_first(sweep, monkeypatch):
    monkeypatch.setattr("os.access", lambda place, mode: False)
    monkeypatch.setattr(comparison, "score_tasks", None)
    with pytest.raises(OSError, match="nothing can be written there; choose a folder by output=FOLDER") as refusal:
        comparison.compare([sweep])
    assert refusal.value.filename == str(sweep)


@pytest.mark.usefixtures("undrawn")
def test_a_folder_that_cannot_be_read_is_named(sweep, monkeypatch, capsys):
    (sweep / "closed").mkdir()
    scandir = os.scandir

    def refuse(place):
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr("os.scandir", refuse)
    assert comparison.compare([sweep]) == 1
    assert f"left out: {sweep / 'closed'}: " in capsys.readouterr().out


def test_no_file_of_a_strangers_folder_is_waited_for_or_read_without_end(sweep, tmp_path):
    """A pipe, a device and a file of gigabytes in the place of each file that is read."""
    run = sweep / "maml_0"
    both = tmp_path / "both"
    shutil.copytree(sweep / "maml_1", both / "good")
    harms = {
        "pipe": os.mkfifo,
        "device": lambda file: file.symlink_to("/dev/zero"),
        "large": lambda file: (file.touch(), os.truncate(file, 2**33)),
    }
    read = ["config.yaml", "metrics.json", "best.ckpt", "calibration.json", "curves.csv", "overrides.yaml"]
    for name in [*read, "history.jsonl", "prior_precision.json"]:
        for harm, put in harms.items():
            damaged = shutil.copytree(run, both / f"{name}-{harm}")
            (damaged / name).unlink(missing_ok=True)
            if name == "history.jsonl":  # is read where there is no curve
                (damaged / "curves.csv").unlink()
            put(damaged / name)
    result = commands.run("evaluate.py", tmp_path, "both", "test_tasks=4", "samples=2")
    assert "Traceback" not in result.stderr
    left_out = {line.split(": ")[1] for line in result.stdout.splitlines() if line.startswith("left out: ")}
    needed = ["config.yaml", "metrics.json", "best.ckpt", "curves.csv"]
    assert left_out >= {f"both/{name}-{harm}" for name in needed for harm in harms}
    assert "Memory" not in result.stdout
    assert result.returncode == 1


def test_a_run_that_cannot_be_written_is_not_calibrated(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda place, mode: Path(place) != sweep / "maml_0")
    with pytest.raises(ValueError, match="maml_0: nothing can be written there; calibrate=true keeps there what it"):
        comparison.compare([sweep / "maml_0"], ["calibrate=true"], output=str(tmp_path / "out"))


def test_nothing_is_written_through_what_a_strangers_folder_brings(sweep, tmp_path):
    """Links and pipes in the place of every file that is written, folders that are links; names that type and clear."""
    stranger = shutil.copytree(sweep / "maml_0", tmp_path / "stranger")
    victim = tmp_path / "elsewhere"
    victim.mkdir()
    (victim / "start_file").write_text("mine")
    for name in ("report.html", ".report.html.part", "results.csv.part", "pictures.part", "table.tex", "summary.csv"):
        (stranger / name).symlink_to(victim / "start_file")
    (stranger / "results.csv").symlink_to(victim / "new")
    (stranger / "pictures").mkdir()
    (stranger / "pictures" / "learning.png").symlink_to(victim / "start_file")
    (stranger / "pictures" / "learning.svg").hardlink_to(victim / "start_file")
    tasks = stranger / "pictures" / "tasks_HYPERLINK_1_2J_on_sinusoid_seed_0"
    tasks.symlink_to(victim)
    keys = {"=cmd|calc!A1": "=1+1", "zz\x1b[2J": "\x1b]0;owned\x07"}
    config = OmegaConf.load(stranger / "config.yaml")
    config.choices.algorithm = "=HYPERLINK(1)\x1b[2J"
    config.choices.update(keys)
    OmegaConf.save(config, stranger / "config.yaml")
    below = shutil.copytree(stranger, tmp_path / "below", symlinks=True)
    (below / "evaluated").symlink_to(victim)
    result = commands.run("evaluate.py", tmp_path, below, "test_tasks=4")
    assert result.returncode == 1
    assert "evaluated: expected a folder to write into, got a link; remove it" in result.stderr.splitlines()[-1]
    (below / "evaluated").unlink()
    (below / "evaluated").mkdir()
    (below / "evaluated" / "test_tasks-4").symlink_to(victim)
    result = commands.run("evaluate.py", tmp_path, below, "test_tasks=4")
    assert result.returncode == 1
    assert "test_tasks-4: expected a folder to write into, got a link" in result.stderr.splitlines()[-1]
    overrides = "- &a [x, x]\n- [*a, *a]\n"
    (stranger / "overrides.yaml").write_text(overrides)
    other = shutil.copytree(sweep / "maml_1", stranger.with_name("other\x1b[2J"))
    result = commands.run("evaluate.py", tmp_path, stranger)
    assert "Traceback" not in result.stderr, result.stderr
    tasks.unlink()
    both = tmp_path / "both"
    both.mkdir()
    stranger.rename(both / "stranger")
    other.rename(both / other.name)
    (both / "broken\x1b[31m").mkdir()
    (both / "broken\x1b[31m" / "train.log").touch()
    (both / "pictures").symlink_to(victim)
    for _ in range(2):
        result = commands.run("evaluate.py", tmp_path, "both")
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
