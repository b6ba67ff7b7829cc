"""The protocol of an evaluation, by data set and network, and what is said of comparisons that mix protocols."""

import json

import pytest

from meta_exp.config.schema import constructor
from meta_exp.runs import protocol
from meta_exp.runs.build import build_learner
from meta_exp.runs.protocol import protocol_of

IMAGES = ["dataset=image_folder", "dataset.image_size=28", "dataset.channels=1", "dataset.ways=2", "algorithm=maml"]


def found(cfg):
    family = constructor(cfg.dataset, "dataset")()
    return protocol_of(build_learner(cfg, family), family, cfg.test_tasks)


def test_of_curves(config):
    cfg = config("dataset.queries=7", "evaluation_steps=4", "test_tasks=30")
    expected = {"queries": 7, "transduction": False, "steps": 4, "tasks": 30, "ensembling": 1}
    assert found(cfg) == expected
    assert found(config("algorithm=llama_predictive"))["steps"] == 0, "none where training takes none"


@pytest.mark.parametrize(("norm", "transduction"), [("batch", True), ("group", False), ("none", False)])
def test_of_images(config, own_images, norm, transduction):
    """Queries are of a class, and batch statistics are of the query batch."""
    cfg = config(*IMAGES, f"dataset.root={own_images}", "dataset.queries=3", "model.filters=8", f"model.norm={norm}")
    assert found(cfg) == {"queries": 3, "transduction": transduction, "steps": 10, "tasks": 600, "ensembling": 1}


def test_of_tables(config, own_tables):
    assert found(config("dataset=csv", "algorithm=maml", f"dataset.root={own_tables}"))["queries"] == 10


def test_a_run_carries_its_own(sinusoid_run):
    metrics = json.loads((sinusoid_run / "metrics.json").read_text())
    carried = {key.removeprefix("protocol/"): value for key, value in metrics.items() if key.startswith("protocol/")}
    assert carried == {"queries": 10, "transduction": False, "steps": 10, "tasks": 20, "ensembling": 1}
    assert carried["tasks"] == metrics["test/tasks"]


def test_what_is_mixed_is_said_in_one_line():
    one = {"queries": 1, "transduction": True, "steps": 3, "tasks": 600, "ensembling": 1}
    other = one | {"queries": 15, "transduction": False}
    assert protocol.mixed([one, dict(one)]) == ""
    assert protocol.mixed([{}, one]) == "", "of what is not known nothing is said"
    words = (
        "protocols are mixed, and figures compare only where they are alike: queries 1, 15; transduction false, true"
    )
    assert protocol.mixed([other, one, one]) == words


def test_of_an_ensemble():
    one = {"queries": 1, "transduction": True, "steps": 3, "tasks": 600, "ensembling": 1}
    assert protocol.of_ensemble([one, dict(one)]) == one | {"ensembling": 2}
    assert protocol.of_ensemble([one, one | {"steps": 10}, one]) == one | {"steps": "3, 10", "ensembling": 3}
