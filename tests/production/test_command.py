"""evaluate.py on files of a new task, as its user types it: CSV files, folders of drawings, scans; and their errors."""

import csv
import os
import stat
import sys
from pathlib import Path

import commands
import numpy as np
import pytest
from PIL import Image

from meta_exp.production import command as new_task
from meta_exp.tasks.images.files import list_images

REPO = Path(__file__).parents[2]
EVALUATE = REPO / "evaluate.py"


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_curve(sinusoid_run, tmp_path):
    x = np.linspace(-4, 0, 10)
    lines = [f"{a},{2 * np.sin(a - 1)}" for a in x]
    (tmp_path / "seen.csv").write_text("time,height\n" + "\n".join(lines))
    (tmp_path / "ask.csv").write_text("-3.50\n-1\n4\n")
    arguments = ["support=seen.csv", "query=ask.csv", "evaluation_steps=40"]
    result = commands.run("evaluate.py", tmp_path, sinusoid_run, *arguments)
    assert result.returncode == 0, result.stderr
    assert "3 linearized predictions, written to predictions.csv" in result.stdout
    found = rows(tmp_path / "predictions.csv")
    assert list(found[0]) == ["time", "mean", "std", "lower_95", "upper_95"]
    assert [row["time"] for row in found] == ["-3.50", "-1", "4"]
    for row in found:
        low, mean, high = (float(row[name]) for name in ("lower_95", "mean", "upper_95"))
        assert high - low == pytest.approx(2 * 1.959964 * float(row["std"]), rel=1e-4)
        assert low < mean < high
    assert not list(tmp_path.glob("*.part"))


def test_letters_and_scans(character_run, drawings, tmp_path):
    """Characters of an alphabet that training never saw; half of the queries come as grey scans of other sizes."""
    (tmp_path / "ask").mkdir()
    for name in ("character01", "character02", "character03"):
        (tmp_path / "letters" / name).mkdir(parents=True)
        files = list_images(drawings / name)
        for file in files[:5]:
            (tmp_path / "letters" / name / file.name).write_bytes(file.read_bytes())
        for i, file in enumerate(files[5:15]):
            scan = Image.open(file).convert("L").resize((240 + 10 * i, 300), Image.Resampling.BICUBIC)
            image = scan.point(lambda v: 70 + v // 2) if i % 2 else Image.open(file)
            image.save(tmp_path / "ask" / f"{name}-{i}.png")
    arguments = ["support=letters", "query=ask", "output=out.csv", "curvature=last_layer", "kind=sample"]
    result = commands.run("evaluate.py", tmp_path, character_run, *arguments)
    assert result.returncode == 0, result.stderr
    found = rows(tmp_path / "out.csv")
    assert list(found[0])[:4] == ["file", "predicted", "probability", "entropy"]
    assert len(found) == 30
    for row in found:
        p = [float(row[f"p_{name}"]) for name in ("character01", "character02", "character03")]
        assert sum(p) == pytest.approx(1, abs=1e-5)
        assert float(row["probability"]) == max(p) == float(row[f"p_{row['predicted']}"])
    right = [row["predicted"] == row["file"].split("-")[0] for row in found]
    assert np.mean(right) > 0.5  # chance is 1/3


def test_half_a_question_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got support alone"):
        new_task.answer([tmp_path], [], support="s.csv")
    with pytest.raises(ValueError, match="a new task: expected one run's folder, got 2"):
        new_task.answer([tmp_path, tmp_path], [], support="s.csv", query="q.csv")
    with pytest.raises(ValueError, match=r"a new task: expected support=\.\.\. and query=\.\.\., got kind=map alone"):
        new_task.answer([tmp_path], [], kind="map")


@pytest.mark.parametrize("key", ["support", "query", "output"])
def test_a_key_without_a_file_is_refused(tmp_path, key):
    """An empty name would be the working folder."""
    with pytest.raises(ValueError, match=f"{key}: expected the name of a file or a folder, got nothing"):
        new_task.answer([tmp_path], [], **({"support": "s.csv", "query": "q.csv"} | {key: ""}))


@pytest.mark.parametrize(
    ("output", "got"),
    [
        ("s.csv/out.csv", "a file in a folder that is there, got .*s.csv/out.csv"),
        ("none/out.csv", "a file in a folder that is there, got .*none/out.csv"),
        ("folder", "the name of a file, got a folder, .*folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_said_before_the_run_is_read(tmp_path, output, got):
    (tmp_path / "s.csv").write_text("1,2\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=f"output: expected {got}"):
        new_task.answer([tmp_path], [], support="s.csv", query="q.csv", output=str(tmp_path / output))


def test_refusals_are_one_line_and_exit_code_1(sinusoid_run, tmp_path):
    (tmp_path / "s.csv").write_text("x,y\n1,2\n3,nan")
    (tmp_path / "q.csv").write_text("1\n")
    refused = {
        (sinusoid_run, "support=s.csv", "query=q.csv"): "error: s.csv, row 3, column y: expected a finite number",
        ("support=s.csv", "query=q.csv"): "error: evaluate: expected a run's folder, got none; see --help",
        ("",): "error: evaluate: expected a run's folder, got an empty name; a variable of the shell may be unset",
    }
    for arguments, message in refused.items():
        result = commands.run("evaluate.py", tmp_path, *arguments)
        assert result.returncode == 1
        assert result.stderr.startswith(message)
        assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "predictions.csv").exists()


def test_folders_that_are_refused(character_run, sinusoid_run, drawings, tmp_path):
    def answer(run, message, **files):
        with pytest.raises((ValueError, OSError), match=message):
            new_task.answer([run], [], **{key: str(value) for key, value in files.items()})

    one = drawings / "character01"
    (tmp_path / "broken" / "a").mkdir(parents=True)
    (tmp_path / "broken" / "b").mkdir()
    (tmp_path / "broken" / "a" / "notes.txt").write_text("a letter")
    answer(character_run, "support=.*character01: expected a sub-folder a class, got none", support=one, query=one)
    answer(character_run, "y: expected 2 to 3 classes, .* got 26", support=drawings, query=one)
    answer(character_run, r"b: expected a folder of images, got no file", support=tmp_path / "broken", query=one)
    (tmp_path / "broken" / "b" / "b.png").write_bytes(list_images(one)[0].read_bytes())
    answer(character_run, r"notes\.txt: expected an image", support=tmp_path / "broken", query=one)
    answer(character_run, "query=nowhere: expected a folder of images", support=drawings, query="nowhere")
    answer(sinusoid_run, "expected a CSV file, since the run is a regression, got a folder", support=one, query=one)


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "predictions.csv"
    file.write_text("before")
    broken = new_task.Answers(["a"], [["1"], None], 1)  # type: ignore[list-item]
    with pytest.raises(TypeError):
        new_task.write_csv(file, broken)
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_output_to_pipes_devices_and_stdout(sinusoid_run, tmp_path):
    """They are written into and stay what they are; the table that people read goes to stderr then."""
    (tmp_path / "seen.csv").write_text("x,y\n-1,0.5\n1,2\n")
    (tmp_path / "ask.csv").write_text("x\n-0.5\n")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "hidden")
    (tmp_path / "link.csv").symlink_to("hidden")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for output in ("-", "/dev/stdout", "/dev/null", "pipe", "link.csv"):
        arguments = ["support=seen.csv", "query=ask.csv", f"output={output}"]
        result = commands.run("evaluate.py", tmp_path, sinusoid_run, *arguments)
        assert result.returncode == 0, result.stderr
        written = result.stdout
        if output == "pipe":
            written = os.read(reader, 10_000).decode()
        if output == "link.csv":
            written = (tmp_path / output).read_text()
        if output != "/dev/null":
            assert written.startswith("x,mean,std,lower_95,upper_95\n-0.5,"), output
            assert ("predictions, written to" in result.stderr) == (output != "link.csv")
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)
    assert stat.S_ISREG((tmp_path / "link.csv").lstat().st_mode), "the link was replaced, not followed"
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert Path("/dev/stdout").is_symlink()


def test_help_is_prompt_and_useful(tmp_path):
    command = [sys.executable, "-X", "importtime", str(EVALUATE), "--help"]
    result = commands.finished(command, tmp_path)
    assert result.returncode == 0, result.stderr
    for words in ("support=", "query=", "outputs/sinusoid_sweep", "curvature", "predictions.csv"):
        assert words in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "meta_exp.cli" in imported
    assert not {"torch", "hydra"} & imported  # whose import takes seconds
