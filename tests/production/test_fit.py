"""Without a command: a network and tasks that are given in Python become a predictor, which a folder keeps."""

import json
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from torch import nn

import meta_exp
from meta_exp.algorithms import MAML
from meta_exp.curvature import LastLayer
from meta_exp.models import MLP, Conv4
from meta_exp.tasks import ImageFolder, Sinusoid
from meta_exp.tasks.episode import Episode, Examples

REPO = Path(__file__).parents[2]
QUICK = ["validation_tasks=5", "conformal_tasks=20", "samples=3"]
X = np.linspace(-4, 0, 8)[:, None]
Y = np.sin(X[:, 0])


class Net(nn.Module):
    """A network of one's own, whose class a folder can name."""

    def __init__(self, input_shape, outputs, width: int = 8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(*input_shape, width), nn.Tanh(), nn.Linear(width, outputs))

    def forward(self, x):
        return self.layers(x)


class Outer:
    """Holds a class that no config can name."""

    class Inner(nn.Module):
        pass


@dataclass(frozen=True)
class Counts:
    """Counts of one's own, from a rate that differs by task."""

    targets = "counts"
    meta_batch, input_shape, outputs, classes = 4, (1,), 1, False

    def draw(self, split, rng, tasks):
        x = rng.uniform(-1, 1, (tasks, 10, 1))
        y = rng.poisson(np.exp(rng.normal(size=(tasks, 1, 1)) + x))
        x, y = torch.from_numpy(x).float(), torch.from_numpy(y).float()
        return Episode(Examples(x[:, :5], y[:, :5]), Examples(x[:, 5:], y[:, 5:]))

    def to(self, device):
        pass


def sequential():
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))


def same(one, two):
    a, b = (learner.adapt(X, Y).predict(X) for learner in (one, two))
    return np.array_equal(a.mean, b.mean) and np.array_equal(a.std, b.std)


@pytest.fixture(scope="module")
def fitted():
    """A network that was given as such."""
    torch.manual_seed(0)
    network = sequential()
    return network, meta_exp.fit(network, Sinusoid(), QUICK, algorithm="llama_predictive", steps=20)


def test_a_network_of_ones_own(fitted, tmp_path):
    network, predictor = fitted
    assert network[0].weight is not predictor.learner.model[0].weight
    assert not torch.equal(network[0].weight, predictor.learner.model[0].weight)
    assert repr(predictor) == "Predictor(llama_predictive on Sinusoid, Sequential of 25 weights, curvature GGN)"
    predictor.save(tmp_path / "kept")
    with pytest.raises(ValueError, match=r"^model: expected the network that was fitted, .*meta_exp.load\(FOLDER, mod"):
        meta_exp.load(tmp_path / "kept")
    before = network[0].weight.clone()
    again = meta_exp.load(tmp_path / "kept", model=network)
    assert same(predictor, again)
    assert torch.equal(network[0].weight, before)
    low, high = again.adapt(X, Y).predict(X).interval(0.8, method="conformal")
    assert (low < high).all()
    with pytest.raises(ValueError, match=r"of another network than config\.yaml"):
        meta_exp.load(tmp_path / "kept", model=nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"kept: expected a new folder, or an empty one, got one that holds something"):
        predictor.save(tmp_path / "kept")


def test_it_trains_as_the_command_does(fitted, tmp_path):
    """The same network, from the same seed, has the same weights at the end, bit by bit."""
    there = "trainer.accelerator=cpu"  # where predictors compute, whose digits are compared too
    predictor = meta_exp.fit(MLP, Sinusoid(), [*QUICK, there], algorithm="maml", steps=4, seed=3)
    words = ["algorithm=maml", "logger=none", "trainer.max_steps=4", "seed=3", "test_tasks=10", *QUICK]
    result = commands.run("train.py", tmp_path, *words, there, "hydra.run.dir=run")
    assert result.returncode == 0, result.stderr
    trained = torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)["state_dict"]
    own = predictor.learner.state_dict()
    assert trained.keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in trained.items())
    assert same(predictor, meta_exp.load(tmp_path / "run"))


def test_classes_are_named_by_the_folder(tmp_path):
    part = partial(Net, width=6)
    predictor = meta_exp.fit(part, Sinusoid(shots=5), QUICK, algorithm=partial(MAML, inner_lr=0.1), steps=2)
    assert predictor.learner.algorithm.inner_lr == 0.1
    predictor.save(tmp_path / "kept")
    with pytest.raises(
        ValueError, match=r"model._target_: expected a class of meta_exp.models, got .*Net; .* add trust"
    ):
        meta_exp.load(tmp_path / "kept")
    assert same(predictor, meta_exp.load(tmp_path / "kept", trust=__name__))
    meta_exp.fit(partial(MLP, widths=[4]), Sinusoid(), QUICK, steps=2).save(tmp_path / "ours")
    posterior = meta_exp.load(tmp_path / "ours", ["curvature=last_layer"])
    posterior.save(tmp_path / "again")
    assert same(posterior, meta_exp.load(tmp_path / "again"))


def test_ours_is_compared_on_the_command_line(tmp_path):
    meta_exp.fit(partial(MLP, widths=[4]), Sinusoid(shots=5), QUICK, curvature=LastLayer, steps=2).save(
        tmp_path / "ours"
    )
    table = commands.run("evaluate.py", tmp_path, "ours", "test_tasks=10")
    assert table.returncode == 0, table.stderr
    assert "linearized" in table.stdout


def test_tasks_of_ones_own_are_not_kept(tmp_path):
    predictor = meta_exp.fit(partial(MLP, widths=[4]), Counts(), QUICK, steps=2)
    assert predictor.learner.algorithm.likelihood.targets == "counts"
    predictor.save(tmp_path / "kept")
    again = meta_exp.load(tmp_path / "kept")
    x, y = np.zeros((3, 1)), np.array([1, 2, 3])
    assert np.array_equal(again.adapt(x, y).predict(x).mean, predictor.adapt(x, y).predict(x).mean)
    refused = commands.run("evaluate.py", tmp_path, "kept", "test_tasks=10")
    assert refused.returncode == 1
    assert "dataset: expected tasks to draw, got a folder that was saved without them" in refused.stderr


def test_images_are_treated_as_in_training(own_images, tmp_path):
    family = ImageFolder(str(own_images), image_size=12, channels=1, ways=2, queries=3)
    predictor = meta_exp.fit(partial(Conv4, filters=2), family, QUICK, steps=2)
    predictor.save(tmp_path / "kept")
    again = meta_exp.load(tmp_path / "kept")
    files = [next((own_images / name).glob("*.png")) for name in ("bar1", "bar2")]
    shown = predictor.read(files)
    assert np.array_equal(shown, again.read(files))
    one, two = (learner.adapt(shown, ["a", "b"]).predict(shown) for learner in (predictor, again))
    assert np.array_equal(one.probabilities, two.probabilities)


REFUSED = {
    "no such algorithm": ({"algorithm": "mamml"}, r"mamml"),
    "no such key": ({"overrides": ["optimizer.lrr=1"]}, "No such key optimizer.lrr; did you mean optimizer.lr"),
    "no number of steps": ({"steps": 0}, "trainer.max_steps: expected an integer, at least 1, got 0"),
    "no seed": ({"seed": -1}, "seed: expected an integer >= 0, got -1"),
    "out of bounds": ({"overrides": ["algorithm.inner_steps=100000"]}, "algorithm.inner_steps: expected at most 10000"),
    "another's word": ({"overrides": "dataset=step"}, "overrides: expected keys of the training, got dataset"),
    "no likelihood of it": ({"likelihood": "categorical"}, "likelihood with Sinusoid: expected gaussian"),
    "a value for a class": ({"algorithm": 3}, "algorithm: expected the name of an option, a class at the top"),
    "no such value": ({"algorithm": partial(MAML, lr=1)}, "algorithm.lr: expected a known key, .* did you mean"),
    "a class within another": ({"model": Outer.Inner}, "model: expected a class at the top of its module, .*, got"),
    "a network for other tasks": ({"model": nn.Linear(3, 1)}, "model=Linear: expected a forward pass from"),
    "no network": ({"model": "mlp"}, "model: expected a network, or a class of one, got 'mlp'"),
    "no tasks": ({"family": [1, 2]}, "dataset=list: expected the attributes meta_batch, .*, got no meta_batch"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed, message = REFUSED[case]
    given = {"model": partial(MLP, widths=[4]), "family": Sinusoid(), "overrides": QUICK, "steps": 2} | changed
    with pytest.raises(ValueError, match=message) as caught:
        meta_exp.fit(given.pop("model"), given.pop("family"), given.pop("overrides"), **given)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


SCRIPT = """
import json, sys
from functools import partial
import torch
from torch import nn
import meta_exp
from meta_exp.tasks import Sinusoid

class Mine(nn.Linear):
    def __init__(self, input_shape, outputs):
        super().__init__(*input_shape, outputs)

before = torch.random.get_rng_state()
predictor = meta_exp.fit(Mine, Sinusoid(), ["validation_tasks=5", "conformal_tasks=20"], steps=3)
assert torch.equal(before, torch.random.get_rng_state())
predictor.save("kept")
again = meta_exp.load("kept", trust="__main__")
mean = again.adapt([[0.0], [1.0]], [0.0, 1.0]).predict([[2.0]]).mean
assert mean == predictor.adapt([[0.0], [1.0]], [0.0, 1.0]).predict([[2.0]]).mean
"""


def test_a_script_is_silent_and_leaves_nothing_else(tmp_path):
    """A class of the script itself is trained, named and found again."""
    (tmp_path / "script.py").write_text(SCRIPT)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "TMPDIR": str(tmp_path)}
    result = commands.finished([sys.executable, "-W", "error::UserWarning", "script.py"], tmp_path, variables)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert {file.name for file in tmp_path.iterdir()} == {"script.py", "kept"}
    names = {"config.yaml", "best.ckpt", "calibration.json", "metrics.json"}
    assert {file.name for file in (tmp_path / "kept").iterdir()} == names
    assert json.loads((tmp_path / "kept" / "metrics.json").read_text())["steps"] == 3
    assert f"run_dir: {tmp_path / 'kept'}" in (tmp_path / "kept" / "config.yaml").read_text()
