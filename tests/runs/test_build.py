"""A config is resolved once, and building it changes neither it nor the environment."""

import os
from pathlib import Path

import pytest
import torch
from conftest import compose_run
from omegaconf import OmegaConf
from oracles import examples

from meta_exp.likelihoods import Categorical, Gaussian, HeteroscedasticGaussian, Poisson
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
    assert [*cfg] == [key for key in composed if key != "default_evaluation_steps"]  # which has said what it had to


def test_a_given_eta_stays(tmp_path):
    assert resolve(compose_run(tmp_path, "algorithm=llama", "algorithm.eta=0.0")).algorithm.eta == 0.0
    assert "eta" not in resolve(compose_run(tmp_path, "algorithm=maml")).algorithm


def test_evaluation_takes_as_many_steps_as_training_at_least(tmp_path):
    def steps(*overrides):
        return resolve(compose_run(tmp_path, "algorithm=maml", *overrides)).evaluation_steps

    assert steps() == 10
    assert steps("algorithm.inner_steps=20") == 20
    assert steps("algorithm.inner_steps=20", "evaluation_steps=5") == 5


@pytest.mark.parametrize("option", ["dataset=omniglot", "experiment=omniglot_5way_1shot_paper", "experiment=sinusoid"])
def test_an_algorithm_is_evaluated_by_the_steps_that_its_rates_are_learned_for(tmp_path, option):
    """Whatever the data set's steps are, which are for rates that serve any step, and at least those of training."""

    def steps(*overrides):
        return resolve(compose_run(tmp_path, option, *overrides)).evaluation_steps

    usual = 10 if option == "experiment=sinusoid" else 3
    assert steps("algorithm=maml") == usual
    assert steps("algorithm=maml", "algorithm.inner_steps=20") == 20
    assert steps("algorithm=meta_sgd", "algorithm.inner_steps=2") == 2
    assert steps("algorithm=maml_plus_plus", "algorithm.inner_steps=6") == 6
    assert steps("algorithm=maml_plus_plus", "algorithm.inner_steps=6", "evaluation_steps=4") == 4
    assert steps("algorithm=maml", "default_evaluation_steps=7") == 7
    for wrong in ("many", "0", "1.5", "True"):
        with pytest.raises(ValueError, match=f"default_evaluation_steps: expected an integer >= 1, got {wrong}"):
            steps("algorithm=maml", f"default_evaluation_steps={wrong}")
    with pytest.raises(ValueError, match="default_evaluation_steps: expected at most 10000, got 20000"):
        steps("algorithm=maml", "default_evaluation_steps=20000")


@pytest.mark.parametrize(
    ("overrides", "tau"),
    [
        (["dataset=omniglot"], 5 / 0.4),
        (["dataset=omniglot", "curvature=last_layer", "dataset.shots=5"], 25 / 0.4),
        (["dataset=mini_imagenet", "curvature=kfac"], 5 / (5 * 0.01)),
        (["experiment=omniglot_curvature_ablation"], 12.5),
        (["experiment=omniglot_5way_1shot_llama"], 10.0),
        (["experiment=sinusoid_llama", "curvature.learned=true"], 10 / (2 * 0.05)),
        (["curvature.learned=true", "likelihood.sigma_noise=0.5"], 10 / (0.5 * 0.01)),
        (["curvature.learned=true", "likelihood=heteroscedastic"], 10 / 0.01),
        (["algorithm=llama_predictive"], 1.0),
        (["curvature=last_layer"], 10.0),
        (["dataset=omniglot", "likelihood=probit", "algorithm=llama_predictive"], 1.0),
        (["dataset=omniglot", "curvature.prior_precision=7"], 7.0),
        ([], 1000.0),
    ],
)
def test_tau_is_what_the_inner_steps_imply(config, overrides, tau):
    """For classes and where it is learned: the precision that K steps of alpha on the mean loss stand for."""
    assert config(*overrides).curvature.prior_precision == pytest.approx(tau)


@pytest.mark.parametrize(
    ("likelihood", "outputs"), [(Categorical(), 3), (Gaussian(0.3), 2), (Poisson(), 2), (HeteroscedasticGaussian(), 4)]
)
def test_scale_of_the_loss(likelihood, outputs):
    """-log p changes by this much as the mean loss changes by one, whatever the outputs."""
    data = examples(likelihood, (2,), (5,), outputs)
    at, to = torch.randn(2, 5, outputs).double()
    nll, loss = (f(to, data.y) - f(at, data.y) for f in (likelihood.nll, likelihood.loss))
    assert float(nll / loss) == pytest.approx(likelihood.nll_per_loss(5, 2))


def test_building_changes_no_config_and_no_environment(config):
    cfg = config("trainer=smoke", "algorithm=llama")
    before, environment = OmegaConf.to_yaml(cfg), dict(os.environ)
    assert build(cfg).learner.algorithm.weight == cfg.algorithm.eta
    assert OmegaConf.to_yaml(cfg) == before
    assert dict(os.environ) == environment


def test_more_processes_than_tasks_are_refused(config):
    five = ["trainer.strategy=ddp", "trainer.devices=5", "trainer.accelerator=cpu", "dataset.meta_batch=4"]
    with pytest.raises(
        ValueError, match=r"trainer\.devices: expected at most dataset\.meta_batch = 4 processes, got 5"
    ):
        build(config("trainer=smoke", "logger=none", *five))
