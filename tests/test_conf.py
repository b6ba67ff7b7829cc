"""Every option of every config group composes and builds, and the groups bring one another as documented."""

from pathlib import Path

import pytest

from meta_exp.algorithms import LLAMA, MAML
from meta_exp.curvature import GGN, LastLayer
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.models import MLP, Conv4
from meta_exp.runs.build import build

CONF = Path(__file__).parents[1] / "conf"
OPTIONS = sorted(f"{file.parent.name}={file.stem}" for file in CONF.glob("*/*.yaml") if file.parent.name != "hydra")
NEEDS = {  # an option that does not go with the default experiment, and what it goes with
    "curvature=none": ["algorithm=maml"],
    "model=conv4": ["dataset=omniglot"],
    "likelihood=categorical": ["dataset=omniglot"],
    "likelihood=poisson": ["dataset._target_=counts.CountTasks"],
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_builds(config, option):
    run = build(config(*NEEDS.get(option, []), option))
    assert run.trainer.max_steps >= 1
    assert run.learner.evaluation_steps >= 1


def test_defaults_are_llama_on_sinusoids(config):
    learner = build(config()).learner
    assert type(learner.algorithm) is LLAMA
    assert type(learner.algorithm.curvature) is GGN
    assert type(learner.algorithm.likelihood) is Gaussian
    assert type(learner.model) is MLP
    assert sum(p.numel() for p in learner.model.parameters()) == 1761


def test_dataset_brings_its_model_and_likelihood(config):
    learner = build(config("dataset=omniglot", "algorithm=maml")).learner
    assert type(learner.algorithm) is MAML
    assert type(learner.model) is Conv4
    assert type(learner.algorithm.likelihood) is Categorical
    assert learner.algorithm.curvature is None
    assert learner.algorithm.inner_lr == 0.4


def test_command_line_wins_over_what_a_group_brings(config):
    overrides = [
        "dataset=omniglot",
        "model=mlp",
        "curvature=last_layer",
        "algorithm.inner_lr=0.1",
        "evaluation_steps=7",
    ]
    learner = build(config(*overrides)).learner
    assert type(learner.model) is MLP
    assert type(learner.algorithm.curvature) is LastLayer
    assert learner.algorithm.inner_lr == 0.1
    assert learner.evaluation_steps == 7


def test_command_line_wins_over_the_experiment(config):
    cfg = config("experiment=omniglot_5way_1shot", "trainer.max_steps=7", "algorithm=llama", "dataset.queries=3")
    assert (cfg.trainer.max_steps, cfg.choices.algorithm, cfg.dataset.queries) == (7, "llama", 3)


def test_a_smoke_run_of_an_experiment_is_a_smoke_run(config):
    assert config("experiment=omniglot_5way_1shot").trainer.max_steps == 6000
    assert config("experiment=omniglot_5way_1shot", "trainer=smoke").trainer.max_steps == 4
    assert config("experiment=omniglot_5way_1shot", "trainer=smoke", "trainer.max_steps=9").trainer.max_steps == 9
    assert config().trainer.max_steps == 15000


def test_a_curvature_with_maml_is_for_evaluation(config):
    learner = build(config("algorithm=maml", "curvature=ggn")).learner
    assert type(learner.algorithm.curvature) is GGN
    assert learner.predictives == ["map", "linearized"]


def test_predictives_without_curvature_are_left_out(config):
    assert build(config("algorithm=maml")).learner.predictives == ["map"]


def test_names_that_others_script_against(config):
    cfg = config()
    for key in (
        "algorithm.inner_lr", "algorithm.inner_steps", "algorithm.first_order", "algorithm.eta",
        "curvature.prior_precision", "dataset.shots", "dataset.queries", "dataset.meta_batch", "optimizer.lr",
        "trainer.max_steps", "trainer.accelerator", "seed", "test_tasks", "evaluation_steps", "logger.wandb.mode",
    ):  # fmt: skip
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]
    assert {"root", "ways"} <= set(config("dataset=omniglot", "algorithm=maml").dataset)


def test_data_folder_comes_from_the_environment(config, monkeypatch):
    monkeypatch.setenv("META_EXP_DATA", "somewhere")
    assert config("dataset=omniglot").dataset.root == "somewhere"
    monkeypatch.delenv("META_EXP_DATA")
    assert config("dataset=omniglot").dataset.root == "data"
