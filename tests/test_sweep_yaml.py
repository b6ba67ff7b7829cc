"""docs/sweep.yaml says to W&B's agent, by its own code, commands that train.py composes."""

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from meta_exp.training.panels import panels

REPO = Path(__file__).parents[1]
sweeps = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
CONFIG = yaml.safe_load((REPO / "docs" / "sweep.yaml").read_text())


def test_a_command_of_the_agent_composes(monkeypatch):
    assert (REPO / CONFIG["program"]).is_file()
    monkeypatch.setenv("program", CONFIG["program"])
    chosen = {
        key: {"value": part.get("value", (part.get("values") or [part.get("min")])[0])}
        for key, part in CONFIG["parameters"].items()
    }
    arguments = sweeps.create_sweep_command_args({"args": chosen})
    words = []
    for word in CONFIG["command"]:
        words += arguments.get(word[2:-1], [word])
    words = sweeps.create_sweep_command(words)
    assert words[:2] == ["uv", "run"]
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        cfg = compose("train", words[3:])
    assert cfg.optimizer.lr == CONFIG["parameters"]["optimizer.lr"]["min"]
    assert cfg.logger.wandb.mode == "online"


def test_the_score_that_it_goes_by_is_one_that_runs_log():
    assert CONFIG["metric"]["name"] in panels({"validation/map/nll": 2.0})
