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
    "compile=maybe": "compile: expected",
}


@pytest.mark.parametrize("override", REFUSED)
def test_refuses(config, override):
    with pytest.raises(ValueError, match=REFUSED[override]):
        build(config(override))


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
