"""What a run writes: whole files only, names that dashboards can use."""

import json
import math

import pytest
import torch
import yaml
from conftest import compose_run

from meta_exp.files import write_json
from meta_exp.runs.build import build
from meta_exp.runs.calibration import CALIBRATION
from meta_exp.runs.folder import Refused
from meta_exp.runs.train import train


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
    assert [line.split(",")[0] for line in lines] == ["step 2 of 4", "step 4 of 4"]
    assert "validation NLL" in lines[0]
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
        start = torch.cat([p.detach().flatten() for p in run.learner.parameters()])
        run.trainer.fit(run.learner, run.stream)
        weights[name] = torch.cat([p.detach().flatten() for p in run.learner.parameters()])
    moved, apart = weights["highest"] - start, weights[precision] - weights["highest"]
    # Of all weights, not of each: Adam moves one whose gradient is next to nothing by its sign, whichever that is.
    assert apart.abs().mean() < 0.1 * moved.abs().mean()


QUICK = [
    "trainer=smoke",
    "algorithm=llama",
    "logger=none",
    "model.widths=[4]",
    "dataset.meta_batch=2",
    "validation_tasks=4",
]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_what_only_the_evaluation_needs_may_change_on_a_trained_run(tmp_path, caplog):
    """It is then evaluated anew, by the weights that it has."""
    words = {"test_tasks": "4", "samples": "5", "predictives": "[map]", "evaluation_steps": "3", "calibrate": "true"}

    def run(**changed):
        caplog.clear()
        words.update(changed)
        with caplog.at_level("INFO"):
            train(compose_run(tmp_path, *QUICK, *(f"{key}={value}" for key, value in words.items())))
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        return {name: value for name, value in metrics.items() if "time/" not in name and "second" not in name}

    first = run()
    weights = (tmp_path / "best.ckpt").read_bytes()
    for key, new in {
        "test_tasks": "6",
        "samples": "3",
        "predictives": "[map,sample]",
        "evaluation_steps": "2",
        "calibrate": "null",
    }.items():
        again = run(**{key: new})
        assert f"evaluated anew: {key}=" in caplog.text
        assert "step 4 of 4: validation" not in caplog.text
        assert str(yaml.safe_load((tmp_path / "config.yaml").read_text())[key]) == str(yaml.safe_load(new))
        run()
        assert "finished already" in caplog.text
    assert again["test/tasks"] == 6
    assert "test/sample/nll" in again
    assert "test/map/mse_step_3" not in again
    assert not (tmp_path / CALIBRATION).exists()
    assert run(test_tasks="4", samples="5", predictives="[map]", evaluation_steps="3", calibrate="true") == first
    assert (tmp_path / "best.ckpt").read_bytes() == weights
    with pytest.raises(Refused, match=r"algorithm.inner_lr=0.01, now 0.1"):
        train(compose_run(tmp_path, *QUICK, "algorithm.inner_lr=0.1"))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_whose_evaluation_failed_goes_on_with_the_mended_command(tmp_path, caplog):
    """What its validation goes by as well changes only when the training is over."""
    train(compose_run(tmp_path, *QUICK, "test_tasks=4"))
    (tmp_path / "metrics.json").unlink()
    train(compose_run(tmp_path, *QUICK, "test_tasks=6", "evaluation_steps=2"))
    assert json.loads((tmp_path / "metrics.json").read_text())["test/tasks"] == 6
    (tmp_path / "metrics.json").unlink()
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    torch.save(last | {"global_step": 2}, tmp_path / "last.ckpt")
    with pytest.raises(Refused, match="evaluation_steps=2, now 3"):
        train(compose_run(tmp_path, *QUICK, "test_tasks=6", "evaluation_steps=3"))


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [("validation/loss", "min"), ("validation/linearized/nll", "min"), ("validation/map/nll", "max")],
)
def test_without_a_calibration_a_search_goes_by_what_chose_the_weights(tmp_path, monitor, mode):
    chosen = [f"callbacks.best.monitor={monitor}", f"callbacks.best.mode={mode}", "algorithm=llama_predictive"]
    cfg = compose_run(tmp_path / "run", *QUICK, *chosen, "calibrate=null")
    found = train(cfg)
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    scores = [row[monitor] for row in history if monitor in row]
    assert len(scores) == 2
    assert found == pytest.approx(min(scores) if mode == "min" else -max(scores))
    assert found == json.loads((tmp_path / "run" / "metrics.json").read_text())["validation/score"]
    assert train(cfg) == found, "finished, and skipped"
