"""What a run writes: whole files only, names that dashboards can use."""

import json
import math

import pytest
import torch

from meta_exp.files import write_json
from meta_exp.runs.build import build


def test_json_is_strict_and_leaves_no_part(tmp_path):
    file = tmp_path / "metrics.json"
    write_json(file, {"a": 1, "b": math.nan, "c": math.inf, "d": "é"})
    assert json.loads(file.read_text()) == {"a": 1, "b": None, "c": None, "d": "é"}
    assert list(tmp_path.iterdir()) == [file]


def test_progress_tells_speed_and_time_left(config, caplog):
    run = build(config("trainer=smoke", "logger=none", "dataset.meta_batch=3"))
    with caplog.at_level("INFO"):
        run.trainer.fit(run.learner, run.stream)
    lines = [record.getMessage() for record in caplog.records if "tasks/s" in record.getMessage()]
    assert [line.split(":")[0] for line in lines] == ["step 2 of 4", "step 4 of 4"]
    assert "validation loss" in lines[0]
    assert "s left" in lines[0]
    assert run.progress.tasks_seen == 12
    assert run.progress.training_s > 0


@pytest.mark.parametrize("precision", ["high", "medium", "highest"])
def test_precision_of_products(config, precision):
    """It is PyTorch's setting, and a training with it stays near the full one; the last case puts it back."""
    weights = {}
    for name in ("highest", precision):
        run = build(config("trainer=smoke", "logger=none", f"matmul_precision={name}"))
        assert torch.get_float32_matmul_precision() == name
        run.trainer.fit(run.learner, run.stream)
        weights[name] = torch.cat([p.detach().flatten() for p in run.learner.parameters()])
    torch.testing.assert_close(weights[precision], weights["highest"], rtol=1e-2, atol=2e-3)
