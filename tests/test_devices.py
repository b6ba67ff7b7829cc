"""A run on several devices: two processes of the CPU stand for them, and talk over the loopback."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import commands
import pytest
import torch

from meta_exp.runs.build import build
from meta_exp.runs.train import train as train_run

REPO = Path(__file__).parents[1]
QUICK = [
    "algorithm=llama",
    "trainer=smoke",
    "trainer.accelerator=cpu",
    "test_tasks=10",
    "validation_tasks=10",
    "logger=csv",
]
TWO = ["trainer.strategy=ddp", "trainer.devices=2"]


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "200"}
    command = [sys.executable, str(REPO / "train.py"), *arguments, *QUICK]
    return commands.finished(command, folder, variables)


def weights(folder: Path) -> torch.Tensor:
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return torch.cat([value.flatten() for value in state.values()])


def logged(folder: Path) -> dict[tuple[str, str], float]:
    """Every logged value by name and step."""
    with next(folder.glob("csv/**/metrics.csv")).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {(name, row["step"]): float(value) for row in rows for name, value in row.items() if value}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_two_processes_train_as_one_does(tmp_path: Path, config) -> None:
    """Five tasks, of which one process takes three; SGD, whose steps are as large as the gradient."""
    settings = ["dataset.meta_batch=5", "optimizer=sgd", "trainer.log_every_n_steps=1"]
    (tmp_path / "one").mkdir()
    train_run(config(*QUICK, *settings, run_dir=tmp_path / "one"))
    result = train(tmp_path, *settings, *TWO, "hydra.run.dir=two")
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert result.stdout.count("run folder") == 1, "one process speaks"
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=1e-5, atol=1e-7)
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    for key in ("test/map/mse", "test/linearized/nll", "validation/loss"):
        assert two[key] == pytest.approx(one[key], rel=1e-5)
    assert two["train/tasks_per_second"] * two["time/train_s"] == pytest.approx(4 * 5), "four meta-batches of five"
    one, two = (logged(tmp_path / name) for name in ("one", "two"))
    assert set(one) == set(two)
    assert {name for name, _ in one} > {"train/objective", "train/gradient_norm", "train/log_det", "validation/loss"}
    assert two == {key: pytest.approx(value, rel=1e-4) for key, value in one.items()}


def test_two_processes_stop_together(tmp_path: Path) -> None:
    result = train(tmp_path, *TWO, "optimizer.lr=1e30", "hydra.run.dir=run")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "Try a smaller optimizer.lr" in result.stderr
    assert torch.isfinite(weights(tmp_path / "run")).all()
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_sweep_takes_one_device_a_job(config) -> None:
    with pytest.raises(ValueError, match=r"trainer\.devices in a sweep: expected 1, got 2; a sweep runs its jobs side"):
        build(config(*QUICK, *TWO, "hydra.mode=MULTIRUN"))
