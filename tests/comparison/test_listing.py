"""The list of runs: states, scores and what a sweep is missing, from files alone; a real process, and Python."""

import json
import os
import shutil

import commands
import pytest
from filelock import FileLock

import meta_exp
from meta_exp.comparison.listing import list_runs, show

SMALL = ["trainer=smoke", "model.widths=[8,8]", "validation_tasks=10", "test_tasks=25", "samples=3"]
SWEEP = """
hydra:
  sweeper: {_target_: hydra._internal.core_plugins.basic_sweeper.BasicSweeper, params: {algorithm: "maml,llama"}}
  overrides: {task: ["seed=0,1,2", "logger=none"]}
"""


@pytest.fixture
def outputs(trained, tmp_path):
    """A folder of runs of every state: of a sweep of six, two are finished and three have a folder of another kind."""
    sweep = tmp_path / "outputs" / "some_sweep"
    for place, seed in enumerate((0, 1)):
        run = trained(f"listing_{seed}", *SMALL, "algorithm=llama", f"seed={seed}")
        folder = shutil.copytree(run, sweep / f"algorithm-llama__seed-{seed}")
        (folder / "overrides.yaml").write_text(f"- algorithm=llama\n- seed={seed}\n")
        metrics = json.loads((folder / "metrics.json").read_text()) | {"test/linearized/nll": 1.0 - seed}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        for file in folder.iterdir():
            os.utime(file, (1e9 + place, 1e9 + place))
    (sweep / "multirun.yaml").write_text(SWEEP)
    begun = "[2026][meta_exp.runs.train][INFO] run folder: x\n"
    for name, log in {
        "algorithm-maml__seed-0": begun + "[2026][meta_exp.failure][ERROR] the run failed\nTraceback\n",
        "algorithm-maml__seed-1": "[meta_exp.failure][ERROR]\n" + begun + "[2026] step 500\n",
        "algorithm-maml__seed-2": begun,
    }.items():
        (sweep / name).mkdir()
        (sweep / name / "train.log").write_text(log)
        (sweep / name / "overrides.yaml").write_text(f"- algorithm=maml\n- seed={name[-1]}\n")
    return tmp_path / "outputs"


def test_every_state_newest_first_and_what_a_sweep_is_missing(outputs):
    lock = outputs / "some_sweep" / "algorithm-maml__seed-2" / ".lock"
    with FileLock(lock):
        rows = list_runs(outputs)
    states = {os.path.basename(row["run"]): row["state"] for row in rows}
    assert states == {
        "algorithm-maml__seed-0": "failed",
        "algorithm-maml__seed-1": "interrupted",
        "algorithm-maml__seed-2": "running",
        "algorithm-llama__seed-1": "finished",
        "algorithm-llama__seed-0": "finished",
        "algorithm-llama__seed-2": "never started",
    }
    assert [row["state"] for row in rows][-3:] == ["finished", "finished", "never started"]
    assert [row["seed"] for row in rows if row["state"] == "finished"] == [1, 0], "the newest first"


def test_the_command(outputs):
    result = commands.run("evaluate.py", outputs.parent, "list", "sort=test/linearized/nll", COLUMNS="80")
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines()[:-8])) <= 80
    table = [line for line in result.stdout.splitlines() if line.startswith("│ ")]
    assert [line.split("│")[2].strip() for line in table[:2]] == ["llama, seed 1", "llama, seed 0"], "the best first"
    assert result.stdout.splitlines()[-1] == "outputs: 2 finished, 2 interrupted, 1 failed, 1 never started"
    one = commands.run("evaluate.py", outputs.parent, "list", "outputs/some_sweep", "algorithm=maml", "seed=1")
    assert one.stdout.splitlines()[-1] == "outputs/some_sweep: 1 interrupted"
    assert one.stdout.splitlines()[-2] == "1  outputs/some_sweep/algorithm-maml__seed-1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    {
        ("nowhere",): "nowhere: expected a folder of runs, got none",
        ("sort=test/map/nonsense",): "sort=test/map/nonsense: expected a score of metrics.json such as test/linearized",
        ("algoritm=maml",): "algoritm: expected a key of a run's config, got one that no run has",
        ("algorithm=anil",): "algorithm=anil: expected a run that has it, got none",
        ("a", "b"): "evaluate.py list: expected one folder, got 2",
    }.items(),
)
def test_refused(outputs, monkeypatch, arguments, said):
    monkeypatch.chdir(outputs.parent)
    with pytest.raises(ValueError, match=said):
        show(arguments)


def test_a_sweep_that_cannot_be_known_lacks_nothing(outputs):
    """A stranger's record may be damaged, of a search, or name more jobs than there are atoms."""
    file = outputs / "some_sweep" / "multirun.yaml"
    many = SWEEP.replace("seed=0,1,2", "seed=range(0,1000000000)")
    for text in (
        "",
        "[1]",
        "a: &a [1]\nb: *a",
        SWEEP.replace("Basic", "Other"),
        many,
        SWEEP.replace("0,1,2", "glob(*)"),
    ):
        file.write_text(text)
        assert "never started" not in {row["state"] for row in list_runs(outputs)}, text


@pytest.mark.parametrize("text", ['- "algorithm=\\x1b[2Jmaml"\n', "- a=[\n", "- [1]\n", "a: 1\n", "- =\n", "\x00"])
def test_a_command_that_is_none_is_left_out(outputs, text, monkeypatch, capsys):
    """A stranger's run has its row all the same, and no other loses its own."""
    monkeypatch.chdir(outputs.parent)
    run = outputs / "some_sweep" / "algorithm-llama__seed-1"
    (run / "overrides.yaml").write_text(text)
    show([])
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "outputs: 2 finished, 2 interrupted, 1 failed, 1 never started"
    assert all(letter.isprintable() or letter == "\n" for letter in said)
    [row] = (row for row in list_runs(outputs) if row["run"].endswith(run.name))
    assert (row["state"], row["overrides"]) == ("finished", [])


def test_from_python(outputs):
    found = meta_exp.results(outputs)
    rows = found if isinstance(found, list) else found.to_dict("records")
    best = min((row for row in rows if row["state"] == "finished"), key=lambda row: row["test/linearized/nll"])
    assert (best["seed"], best["choices.algorithm"], best["overrides"]) == (1, "llama", "algorithm=llama seed=1")
