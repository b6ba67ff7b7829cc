"""The learning curve holds a row a validation, and goes on where a continued run does."""

import json
from pathlib import Path

import pytest

from meta_exp.runs.build import build
from meta_exp.runs.train import train
from meta_exp.training.learning_curve import read_curve


def test_a_row_a_validation_kept_when_a_run_goes_on(config):
    cfg = config("trainer=smoke", "logger=none", "model.widths=[8]", "validation_tasks=10")
    file = Path(cfg.run_dir) / "curves.csv"
    run = build(cfg)
    run.trainer.fit(run.learner, run.stream)
    first = read_curve(file)
    assert first["step"] == [2, 4]
    assert first["validation/loss"][-1] == float(run.trainer.callback_metrics["validation/loss"])
    run.trainer.save_checkpoint(Path(cfg.run_dir) / "four.ckpt")
    file.write_text(file.read_text() + file.read_text().splitlines()[-1].replace("4", "5", 1) + "\n")  # beyond
    cfg.trainer.max_steps = 8
    more = build(cfg)
    more.trainer.fit(more.learner, more.stream, ckpt_path=Path(cfg.run_dir) / "four.ckpt")
    whole = read_curve(file)
    assert whole["step"] == [2, 4, 6, 8]
    assert whole["validation/loss"][:2] == first["validation/loss"]


def test_a_run_without_a_curve(tmp_path):
    assert read_curve(tmp_path / "curves.csv") == {}


@pytest.mark.parametrize(
    "damage", [None, b"", b"step,validation/loss\n2,", b"\xff\x00", b"validation/loss\n1\n", b"step\n2\n"]
)
def test_a_lost_curve_is_written_anew_from_the_history(config, damage):
    """When the run goes on; and one that is lost later is read from there."""
    cfg = config("trainer=smoke", "logger=none", "model.widths=[8]", "validation_tasks=4", "test_tasks=2")
    folder = Path(cfg.run_dir)
    train(cfg)
    file = folder / "curves.csv"
    whole, columns = file.read_bytes(), read_curve(file)
    assert columns["step"] == [2, 4]
    file.unlink()
    assert read_curve(file) == columns
    if damage is not None:
        file.write_bytes(damage)
    (folder / "metrics.json").unlink()
    train(cfg)
    assert file.read_bytes() == whole


def test_a_damaged_curve_is_refused_by_its_name(tmp_path):
    for text in ("step,validation/loss\n1,many\n", "validation/loss\n1\n", "step,a\n1,2,3\n"):
        (tmp_path / "curves.csv").write_text(text)
        with pytest.raises(ValueError, match=r"curves\.csv: expected numbers by step, got .*; remove it") as refusal:
            read_curve(tmp_path / "curves.csv")
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("line", ["5", "{", "[]", '{"tasks_seen": 1}', "[" * 100_000, '{"step": "a"}', "\udcff"])
def test_a_damaged_history_is_cut(tmp_path, line):
    rows = [{"step": 1, "tasks_seen": 2, "validation/loss": 0.5}, {"step": 2, "tasks_seen": 4, "validation/loss": 0.25}]
    text = "\n".join([json.dumps(rows[0]), line, json.dumps(rows[1])])
    (tmp_path / "history.jsonl").write_text(text, errors="surrogateescape")
    assert read_curve(tmp_path / "curves.csv") == {"step": [1], "validation/loss": [0.5]}
