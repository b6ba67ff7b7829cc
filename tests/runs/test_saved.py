"""Runs that the version before trained: its folders evaluate, predict and go on to the same digits.

``tests/data`` holds what that version wrote, on a CPU with AVX-512; ``predictions.json`` is what its ``meta_exp.load``
predicted on the task of ``new_task``: images one by one, each behind those of the task's support. Elsewhere the last
digits may differ, and where norms are summed, which today are in another order, the last one of float32.
"""

import json
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose_run
from omegaconf import OmegaConf
from scipy.stats import t as student

import meta_exp
from meta_exp.comparison.results import is_identity
from meta_exp.config.keys import flatten
from meta_exp.runs.folder import Refused, refuse_other_config
from meta_exp.runs.restore import load_config, open_run
from meta_exp.runs.saved import RENAMED, read_config, snapshot
from meta_exp.runs.test_set import score_tasks, summarize
from meta_exp.runs.train import train
from meta_exp.training.precision import set_precision

DATA = Path(__file__).parents[1] / "data"
FINISHED = ["sinusoid_llama", "sinusoid_maml_tuned", "omniglot_llama"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def plain_products():
    """Products as a process begins with, whatever tests have set before."""
    torch.set_float32_matmul_precision("highest")


def same(found, expected, made_by):
    """Whether numbers are the same: to the last digit where the same PyTorch computes them on the same kind of CPU.

    Products take other forms on another maker's processor, whatever instructions it has.
    """
    cpuinfo = Path("/proc/cpuinfo")
    amd = cpuinfo.is_file() and "AuthenticAMD" in cpuinfo.read_text()
    here = (version("torch"), torch.backends.cpu.get_cpu_capability(), amd)
    if here == (made_by["version/torch"], "AVX512", True):
        digits = 1e-6 if made_by["dataset"] == "omniglot" else 0.0
        return np.allclose(found, expected, rtol=digits, atol=0, equal_nan=True)
    return np.allclose(found, expected, rtol=1e-3, atol=1e-5, equal_nan=True)


def by_probes(learner):
    """Evaluate by the curvature of training, as that version did: K-FAC of today then takes all passes."""
    learner.algorithm = learner.gradient.algorithm


def overrides(folder):
    """The command's: calibration has taken the place of tuning tau, whose default for classes is another today."""
    found = OmegaConf.to_container(OmegaConf.load(folder / "overrides.yaml"))
    tau = ["curvature.prior_precision=1000.0"] if "dataset=omniglot" in found else []
    return [*(override for override in found if not override.startswith("tune_prior_precision")), *tau]


def new_task(learner):
    """Six points of a task, and four to predict at."""
    rng = np.random.default_rng(0)
    x, new = (rng.uniform(0, 1, (n, *learner.input_shape)) for n in (6, 4))
    return x, np.array(list("abcabc")) if learner.classifies else 2 * np.sin(5 * x[:, 0]), new


@pytest.mark.parametrize("name", FINISHED)
def test_the_digits_of_its_metrics(name, request):
    folder = DATA / name
    images = name.startswith("omniglot")
    root = [f"dataset.root={request.getfixturevalue('omniglot_root')}"] if images else []
    run = open_run(folder, root)
    set_precision(run.cfg.matmul_precision, images)
    by_probes(run.learner)
    found = summarize(score_tasks(run.learner, run.family, run.cfg.test_tasks, CPU))
    expected = {key: value for key, value in run.metrics.items() if key.startswith("test/")}
    assert found.keys() == expected.keys()
    intervals = {key for key in found if key.endswith("_ci95")}  # of the normal distribution then, Student's today
    others = [key for key in found if key not in intervals]
    assert same([found[key] for key in others], [expected[key] for key in others], run.metrics)
    for key in intervals - {key for key in intervals if "auroc" in key}:
        wider = student(found["test/tasks"] - 1).ppf(0.975) / 1.96
        assert found[key] == pytest.approx(wider * expected[key], rel=1e-3)
    assert same(run.learner.prior_precision, run.metrics["prior_precision"], run.metrics)


@pytest.mark.parametrize("name", FINISHED)
def test_the_digits_of_its_predictions(name):
    learner = meta_exp.load(DATA / name)
    made_by = json.loads((DATA / name / "metrics.json").read_text())
    expected = json.loads((DATA / name / "predictions.json").read_text())
    x, y, new = new_task(learner)
    by_probes(learner.learner)
    task = learner.adapt(x, y)
    assert list(learner.kinds) == list(expected)
    for kind in learner.kinds:
        found = task.predict(new, kind=kind)
        parts = (found.probabilities, found.entropy) if learner.classifies else (found.mean, found.std)
        for part, numbers in zip(parts, expected[kind], strict=True):
            assert same(np.asarray(part, np.float64), numbers, made_by)


def test_one_that_was_killed_goes_on_to_the_weights_of_one_that_was_not(tmp_path):
    killed, whole = DATA / "sinusoid_llama_interrupted", DATA / "sinusoid_llama"
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 25
    train(compose_run(folder, *overrides(killed), "calibrate=null"))  # as trained, which is what the whole one has
    made_by = json.loads((whole / "metrics.json").read_text())
    found, expected = (
        torch.load(place / "best.ckpt", map_location="cpu", weights_only=True) for place in (folder, whole)
    )
    assert found["global_step"] == expected["global_step"] == 40
    for name, value in expected["state_dict"].items():
        assert same(found["state_dict"][name].numpy(), value.numpy(), made_by)
    found, expected = (json.loads((place / "metrics.json").read_text()) for place in (folder, whole))
    names = [name for name in expected if name.startswith("test/") and not name.endswith("_ci95")]
    assert same([found[name] for name in names], [expected[name] for name in names], made_by)
    found, expected = (np.genfromtxt(place / "curves.csv", delimiter=",", names=True) for place in (folder, whole))
    names = [name for name in expected.dtype.names if "_step_" not in name]  # which validation scores no more
    assert len(names) > 10
    assert same(*([curves[name] for name in names] for curves in (found, expected)), made_by)


@pytest.mark.parametrize("name", FINISHED)
def test_the_same_command_finds_it_finished(name, tmp_path, config):
    """Another is refused, for the key that differs, and not for the names of classes."""
    folder = Path(shutil.copytree(DATA / name, tmp_path / "run"))
    refuse_other_config(folder, snapshot(config(*overrides(folder), run_dir=folder)))
    with pytest.raises(Refused, match=r"was begun with, got seed=0, now 7; give"):
        refuse_other_config(folder, snapshot(config(*overrides(folder), "seed=7", run_dir=folder)))


def test_it_is_grouped_with_runs_of_today(tmp_path, config):
    """But for what serves a run of today, which is calibrated."""
    old = DATA / "sinusoid_llama"
    (tmp_path / "config.yaml").write_text(snapshot(config(*overrides(old), run_dir=tmp_path)))
    keys = [flatten(OmegaConf.to_container(load_config(folder))) for folder in (old, tmp_path)]
    assert [key for key in {*keys[0], *keys[1]} if is_identity(key) and keys[0].get(key) != keys[1].get(key)] == [
        "calibrate"
    ]


def test_names_lead_to_classes_of_today():
    for before, today in RENAMED.items():
        module, _, name = today.rpartition(".")
        assert isinstance(vars(__import__(module, fromlist=[name]))[name], type)
        assert today not in RENAMED
        assert before.startswith("pytorch_lightning") or find_spec(before.rpartition(".")[0]) is None


def test_only_what_names_a_class_is_translated(tmp_path):
    file = tmp_path / "config.yaml"
    name = "meta_exp.likelihood.Gaussian"
    file.write_text(
        f"name: {name}\nlikelihood: {{_target_: {name}}}\nparts: [{{_target_: {name}}}]\nb: {{_target_: [1]}}"
    )
    cfg = OmegaConf.to_container(read_config(file))
    today = {"_target_": "meta_exp.likelihoods.Gaussian"}
    assert cfg == {"name": name, "likelihood": today, "parts": [today], "b": {"_target_": [1]}}
