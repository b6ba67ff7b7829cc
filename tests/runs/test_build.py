"""A config is resolved once, and building it changes neither it nor the environment."""

import os
from pathlib import Path

import pytest
from conftest import compose_run
from omegaconf import OmegaConf

from meta_exp.runs.build import build, resolve
from meta_exp.runs.names import run_name


@pytest.mark.parametrize("curvature", ["ggn", "diagonal"])
def test_resolved_once(tmp_path, curvature):
    composed = compose_run(tmp_path, "trainer=smoke", "algorithm=llama", f"curvature={curvature}")
    before = OmegaConf.to_container(composed, resolve=False)
    cfg = resolve(composed)
    assert OmegaConf.to_container(composed, resolve=False) == before
    assert cfg.run_name == cfg.logger.wandb.id == run_name(Path(tmp_path))
    assert cfg.algorithm.eta == {"ggn": 0.05, "diagonal": 0.01}[curvature]
    assert "${" not in OmegaConf.to_yaml(cfg)
    assert resolve(cfg) == cfg
    assert list(cfg) == list(composed)


def test_a_given_eta_stays(tmp_path):
    assert resolve(compose_run(tmp_path, "algorithm=llama", "algorithm.eta=0.0")).algorithm.eta == 0.0
    assert "eta" not in resolve(compose_run(tmp_path, "algorithm=maml")).algorithm


def test_evaluation_takes_as_many_steps_as_training_at_least(tmp_path):
    def steps(*overrides):
        return resolve(compose_run(tmp_path, "algorithm=maml", *overrides)).evaluation_steps

    assert steps() == 10
    assert steps("algorithm.inner_steps=20") == 20
    assert steps("algorithm.inner_steps=20", "evaluation_steps=5") == 5


def test_building_changes_no_config_and_no_environment(config):
    cfg = config("trainer=smoke", "algorithm=llama")
    before, environment = OmegaConf.to_yaml(cfg), dict(os.environ)
    assert build(cfg).learner.algorithm.weight == cfg.algorithm.eta
    assert OmegaConf.to_yaml(cfg) == before
    assert dict(os.environ) == environment
