"""Settings that are refused: each by its key, with what was expected, and before any training."""

import pytest
from omegaconf import OmegaConf

from meta_exp.config.schema import constructor
from meta_exp.runs.build import build

REFUSED = {
    "algorithm.inner_lr=0": "algorithm.inner_lr: expected a learning rate > 0, got 0",
    "algorithm.inner_lr=-0.1": "algorithm.inner_lr: expected a learning rate > 0, got -0.1",
    "algorithm.inner_lr=fast": "algorithm.inner_lr: expected a valid number",
    "algorithm.inner_steps=0": "algorithm.inner_steps: expected at least 1, got 0",
    "algorithm.inner_steps=1.5": "algorithm.inner_steps: expected a valid integer",
    "algorithm.first_order=maybe": "algorithm.first_order: expected a valid boolean",
    "+algorithm.iner_lr=1": "algorithm.iner_lr: expected a known key.* did you mean inner_lr",
    "algorithm.eta=-1": "algorithm.eta: expected a weight >= 0, got -1",
    "algorithm.data=both": "algorithm.data: expected 'support' or 'query'",
    "curvature=none": "algorithm=llama: expected a curvature, got curvature=none; choose curvature=ggn",
    "curvature.prior_precision=0": "curvature.prior_precision: expected a precision > 0, got 0",
    "curvature.learned=true": "curvature.learned=true: expected algorithm.prior_term=true",
    "likelihood.sigma_noise=0": "likelihood.sigma_noise: expected a standard deviation > 0, got 0",
    "likelihood=categorical": "likelihood with Sinusoid: expected gaussian, heteroscedastic, got categorical",
    "likelihood=poisson": "likelihood with Sinusoid: expected gaussian, heteroscedastic, got poisson",
    "model=conv4": r"model=conv4: expected images \[C, H, W\], got \[1\]; use model=mlp",
    "model.widths=[40,0]": "model.widths: expected positive widths",
    "dataset.shots=0": "dataset.shots: expected at least 1, got 0",
    "dataset.noise=-1": "dataset.noise: expected a standard deviation >= 0, got -1",
    "dataset.amplitude=[5,1]": r"dataset.amplitude: expected \[low, high\] with low <= high",
    "optimizer.lr=0": "optimizer.lr: expected a learning rate > 0, got 0",
    "+optimizer.lrr=1": "optimizer.lrr: expected a known key.* did you mean lr",
    "trainer.max_steps=0": "trainer.max_steps: expected an integer, at least 1, got 0",
    "trainer.max_steps=-1": "trainer.max_steps: expected an integer, at least 1, got -1",
    "trainer.val_check_interval=0": "trainer.val_check_interval: expected an integer, at least 1, got 0",
    "evaluation_steps=0": "evaluation_steps: expected at least 1, got 0",
    "test_tasks=1": "test_tasks: expected at least 2",
    "test_tasks=many": "test_tasks: expected a valid integer",
    "samples=0": "samples: expected at least 1, got 0",
    "chunk_size=0": "chunk_size: expected null, auto or at least 1, got 0",
    "matmul_precision=low": "matmul_precision: expected one of highest, high, medium, got low",
    "seed=-1": "seed: expected an integer >= 0, got -1",
    "predictives=[map,best]": "predictives: expected some of map, sample, linearized, got best",
    "compile=maybe": "compile: expected a valid boolean or 'auto', got 'maybe'",
    "test_tasks=true": "test_tasks: expected a value of the form int, got True",
    "test_tasks=1e30": "test_tasks: expected",
    "seed=99999999999999999999": "seed: expected a number within 64 bits, got 99999999999999999999",
    "dataset.shots=2147483648": r"dataset.shots: expected at most 100000, got 2147483648",
    "dataset.x_range=[0,inf]": "dataset.x_range: expected a finite number",
    "dataset.x_range=[0,1e30]": r"dataset.x_range: expected at most 1e\+06, got 1e\+30",
    "dataset.noise=1e-30": r"dataset.noise: expected a number from 1e-06 to 1e\+06, got 1e-30",
    "dataset.noise=nan": "dataset.noise: expected a finite number, got nan",
    "model.widths=[true]": "model.widths: expected a value of the form",
    "model.widths=[90000,90000]": r"model.widths: expected at most 100000000 weights, got \[90000, 90000\]",
    "algorithm.inner_lr=1e30": r"algorithm.inner_lr: expected at most 1000, got 1e\+30",
    "likelihood.sigma_noise=1e-30": "likelihood.sigma_noise: expected a number from 1e-06 to 1e.06, got 1e-30",
    "predictives=[]": "predictives: expected one at least of map, sample, linearized",
    "calibrate=maybe": "calibrate: expected a valid boolean",
    "name=../x": r"name: expected a name for folders below outputs/, got '../x'",
    "choices.model=conv4": "choices.model: expected the option chosen, mlp, got conv4; choose by model=NAME",
    "run_title={a:1}": r"run_title: expected a text, or null, got \{'a': 1\}",
    "run_name=mine": "run_name: expected null, for the name of the folder, got mine",
    "optimizer.lr=true": "optimizer.lr: expected a value of the form",
    "optimizer.fused=abc": "optimizer.fused: expected a valid boolean",
    "+optimizer.betas=[2,3]": "optimizer.betas: expected what Adam takes, got Invalid beta parameter",
    "+optimizer.foreach=true": "optimizer.fused, optimizer.foreach: expected what Adam takes",
    "optimizer._target_=torch.nn.Linear": r"optimizer._target_: expected a class of torch.optim, got torch.nn.Linear",
    "dataset._target_=nowhere": "dataset._target_: expected a class of meta_exp.tasks, got nowhere",
    "+callbacks.mine._target_=nowhere": "callbacks.mine._target_: expected the name of a class, got .nowhere.",
    "trust=5": "trust: expected names of modules",
    "scores=5": "scores: expected scores by name, got 5",
    "scores='${nothing}'": "scores: expected a value, got .* Interpolation key 'nothing' not found",
    "~algorithm.inner_lr": "algorithm.inner_lr: expected a value, got none",
    "algorithm.inner_lr=???": "algorithm.inner_lr: expected a value, got none",
    "~seed": "seed: expected a value, got none",
    "+model.outputs=3": "model.outputs: expected a known key",
    "trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches: expected an integer, at least 1, got 0",
    "trainer.accumulate_grad_batches=-1": "trainer.accumulate_grad_batches: expected an integer, at least 1, got -1",
    "trainer.accumulate_grad_batches=1.5": "trainer.accumulate_grad_batches: expected a valid integer, got 1.5",
    "trainer.devices=abc": "trainer.devices: expected how many, or a list of their numbers, got abc",
    "trainer.devices=0": "trainer.devices: expected how many",
    "trainer.devices=2147483648": "trainer.devices: expected how many",
    "trainer.devices=26": "trainer.devices: expected at most dataset.meta_batch = 25 processes, got 26",
    "trainer.gradient_clip_val=-1": "trainer.gradient_clip_val: expected null or a number > 0, got -1",
    "trainer.gradient_clip_algorithm=abc": "trainer.gradient_clip_algorithm: expected 'norm' or 'value', got 'abc'",
    "trainer.precision=64-true": "trainer.precision: expected 32-true, got 64-true; matmul_precision",
    "trainer.strategy=fsdp": "trainer.strategy: expected 'auto' or 'ddp', got 'fsdp'",
    "+trainer.fast_dev_run=true": "trainer.fast_dev_run: expected a known key",
    "+callbacks.last.dirpath=abc": "callbacks.last.dirpath: expected a known key",
    "callbacks.best=null": "callbacks.best._target_: expected the class that it chooses, got none",
    "callbacks.last.every_minutes=-1": "callbacks.last.every_minutes: expected null or at least 0, got -1",
    "logger.wandb.mode=abc": "logger.wandb.mode: expected 'online', 'offline' or 'disabled', got 'abc'",
    "logger.wandb.project=../x": r"logger.wandb.project: expected a word of at most 128 characters.*, got '../x'",
    "logger.wandb.id=": "logger.wandb.id: expected a word",
    "model.widths=['${nothing}']": "model.widths: expected a value, got .* Interpolation key 'nothing' not found",
}


@pytest.mark.parametrize("override", REFUSED)
def test_refuses(config, override):
    with pytest.raises(ValueError, match=REFUSED[override]):
        build(config("trainer.accelerator=cpu", override))  # of which there may be as many as one names


def test_values_are_those_of_the_constructors_types(config):
    """And so they stand in the config that is saved, compared and read by everything else."""
    words = ["test_tasks=1e3", "evaluation_steps='7'", "algorithm.inner_lr=1", "trainer.max_steps=2e1", "name=2024"]
    cfg = config(*words, "model.widths=[8.0]", "compile=1", "logger.wandb.project=5", "trainer.devices='1'")
    assert repr(cfg.test_tasks) == "1000"
    assert repr(cfg.evaluation_steps) == "7"
    assert repr(cfg.algorithm.inner_lr) == "1.0"
    assert repr(cfg.trainer.max_steps) == "20"
    assert cfg.model.widths == [8]
    assert (cfg.compile, cfg.name, cfg.logger.wandb.project, cfg.trainer.devices) == (True, "2024", "5", "1")
    run = build(cfg)
    assert (run.trainer.max_steps, run.learner.evaluation_steps, run.learner.algorithm.inner_lr) == (20, 7, 1.0)


OMNIGLOT_REFUSED = {
    "dataset.ways=1": "dataset.ways: expected at least 2, got 1",
    "dataset.queries=0": "dataset.queries: expected at least 1, got 0",
    "dataset.split_by=colour": "dataset.split_by: expected 'character' or 'alphabet'",
    "likelihood=gaussian": "likelihood with Omniglot: expected categorical, probit, got gaussian",
    "model.filters=0": "model.filters: expected at least 1, got 0",
    "model.norm=layer": "model.norm: expected 'batch', 'group' or 'none'",
}


@pytest.mark.parametrize("override", OMNIGLOT_REFUSED)
def test_refuses_on_images(config, override):
    with pytest.raises(ValueError, match=OMNIGLOT_REFUSED[override]):
        build(config("dataset=omniglot", "algorithm=maml", override))


def test_group_norm_names_the_filters(config):
    with pytest.raises(ValueError, match=r"model.filters: expected a multiple of the 8 groups, got 12"):
        build(config("dataset=omniglot", "algorithm=maml", "model.norm=group", "model.filters=12"))


def test_a_group_without_a_class_is_refused_by_name():
    with pytest.raises(ValueError, match=r"model\._target_: expected the class that it chooses, got none; choose"):
        constructor(OmegaConf.create({"widths": [4]}), "model")
