"""The learning curve holds a row a validation, and goes on where a continued run does."""

from pathlib import Path

from meta_exp.runs.build import build
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
