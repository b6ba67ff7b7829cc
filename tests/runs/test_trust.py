"""Classes of one's own: with the word they train, are restored and loaded; without it they are refused before that."""

import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import meta_exp
from meta_exp.runs.build import build
from meta_exp.runs.restore import load_config, open_run
from meta_exp.runs.trust import VARIABLE, trusted_modules

NETS = """
import os
from pathlib import Path

from torch import nn
from meta_exp.models import MLP

Path(__file__).with_name("imported").touch()


class Net(nn.Sequential):
    def __init__(self, input_shape: tuple[int, ...], outputs: int, width: int = 8) -> None:
        super().__init__(nn.Linear(input_shape[0], width), nn.Tanh(), nn.Linear(width, outputs))


class Loose(nn.Linear):
    def __init__(self, input_shape, outputs, width=8):
        super().__init__(input_shape[0], outputs)


class Number:
    pass


def make(input_shape, outputs):
    return Net(input_shape, outputs)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of one's own in the working folder, which is not yet on Python's path."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "nets.py").write_text(NETS)
    (tmp_path / "mine" / "broken.py").write_text("import nothing_of_that_name")
    (tmp_path / "mine" / "wrong.py").write_text("1 / 0")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path / "mine"
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def own(config, *overrides):
    return config("model._target_=mine.nets.Net", "trainer=smoke", "logger=none", *overrides)


def test_the_word_lets_a_config_name_a_class(config, package):
    """The option that it takes the place of leaves no key behind, and gives the choice no name."""
    cfg = own(config, "trust=[mine]", "+model.width=5")
    assert OmegaConf.to_container(cfg.model) == {"_target_": "mine.nets.Net", "width": 5}
    assert cfg.choices.model == "Net"
    assert build(cfg).learner.model[0].out_features == 5


@pytest.mark.parametrize("word", ["mine", "mine.nets", ["other", "mine"]])
def test_from_the_environment_and_as_one_word(config, package, monkeypatch, word):
    monkeypatch.setenv(VARIABLE, word if isinstance(word, str) else ", ".join(word))
    build(own(config))


REFUSED = {
    "": r"model._target_: expected a class of meta_exp.models, got mine.nets.Net; if you .* add trust=\[mine\]",
    "trust=[mine.net]": r"expected a class of meta_exp.models, got mine.nets.Net",
    "trust=[mine] model._target_=mine.nets.Nte": r"got mine.nets.Nte; did you mean mine.nets.Net\?",
    "trust=[mine] model._target_=mine.nest.Net": "_target_: expected a module mine.nest, got none; it is looked for",
    "trust=[mine] model._target_=mine.broken.Net": "that imports, got mine.broken: No module named 'nothing_of",
    "trust=[mine] model._target_=mine.wrong.Net": "got mine.wrong: ZeroDivisionError: division by zero",
    "trust=[mine] model._target_=mine.nets.Number": "a class derived from torch.nn.modules.module.Module, got mine",
    "trust=[mine] model._target_=mine.nets.make": "model._target_: expected a class of mine.nets, got mine.nets.make",
    "trust=[mine] model._target_=mine.nets.os.system": "model._target_: expected a module mine.nets.os, got none",
    "trust=[mine] model._target_=mine.nets.MLP": "expected a class of mine.nets, got mine.nets.MLP",
    "trust=[mine] curvature._target_=mine.nets.Net": "curvature._target_: expected a class derived from .*Curvature",
    "trust=[mine] dataset._target_=mine.nets.Net": "dataset._target_: expected a class with a method draw",
    "trust=[mine] +model.width=many": "model.width: expected a valid integer.*, got 'many'",
    "trust=[mine] +model.widht=3": "model.widht: expected a known key, got an unknown one; did you mean width",
    "trust=[mi-ne]": r"trust: expected names of modules, as in trust=\[my_package\], got 'mi-ne'",
    "trust=[3]": "trust: expected names of modules",
    "model._target_=meta_exp.models.MPL": r"a class of meta_exp.models, got .*; did you mean meta_exp.models.MLP\?",
    "model._target_=subprocess.Popen": "model._target_: expected a class of meta_exp.models, got subprocess.Popen$",
    "trust=[mine] callbacks.best._target_=mine.nets.Net": "callbacks.best._target_: expected a class of meta_exp.train",
}  # fmt: skip


@pytest.mark.parametrize("overrides", REFUSED)
def test_refused_before_training(config, package, overrides):
    with pytest.raises(ValueError, match=REFUSED[overrides]) as refusal:
        build(own(config, *overrides.split()))
    assert "\n" not in str(refusal.value)
    assert "trust=[" not in str(refusal.value) or not overrides or "trust" in overrides


def test_annotations_are_not_needed(config, package):
    build(own(config, "trust=[mine]", "model._target_=mine.nets.Loose", "+model.width=many"))


@pytest.fixture
def run(sinusoid_run, package):
    """A finished run whose config names a class of one's own."""
    folder = Path(shutil.copytree(sinusoid_run, package.parent / "run"))
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.model = {"_target_": "mine.nets.Net", "width": 8}
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    return folder


def test_restoring_asks_for_the_word(run, package, monkeypatch):
    """Without it nothing of the package is imported, and no config speaks for itself."""
    for text in ("", "trust: [mine, os]\n", "trust: mine\n"):
        file = run / "config.yaml"
        file.write_text(text + file.read_text().removeprefix("trust: [mine, os]\n"))
        with pytest.raises(ValueError, match=r"config.yaml: model._target_: expected .*, got mine.nets.Net; if you"):
            open_run(run)
    assert not (package / "imported").exists()
    cfg = load_config(run, ["trust=mine"])
    assert (package / "imported").exists()
    assert "trust" not in cfg
    load_config(run, [], "mine")
    load_config(run, ["samples=3"], ["other", "mine"])
    with pytest.raises(ValueError, match=r"best\.ckpt: expected model\.0\.weight"):  # it is another network's
        meta_exp.load(run, trust="mine")
    monkeypatch.setenv(VARIABLE, "mine")
    load_config(run)


HOSTILE = {
    "model._target_": "mine.nets.os.system",
    "dataset._target_": "mine.nets.Path",
    "likelihood._target_": "mine.nets.Net",
    "model.inner": {"_target_": "mine.nets.Path"},
    "model._args_": ["mine"],
    "algorithm._target_": "os.system",
    "run_name": {"_target_": "mine.nets.Net"},
    "curvature._target_": "mine.missing.Net",
}


@pytest.mark.parametrize("key", HOSTILE)
def test_what_a_trusted_module_has_imported_is_not_its_own(run, key):
    cfg = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(cfg, key, HOSTILE[key], force_add=True)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    with pytest.raises(ValueError, match=rf"config.yaml: {key.split('.')[0]}.*expected"):
        open_run(run, ["trust=[mine]"])


def test_callbacks_and_loggers_that_are_never_built_need_no_word(sinusoid_run, package):
    folder = Path(shutil.copytree(sinusoid_run, package.parent / "run"))
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.callbacks.stop = {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "validation/loss"}
    cfg.callbacks.mine = {"_target_": "mine.nets.Callback", "_partial_": True, "inner": {"_target_": "os.system"}}
    cfg.logger = {"mine": {"_target_": "mine.nets.Logger"}}
    cfg.trainer.profiler = {"_target_": "mine.nets.Profiler"}
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    open_run(folder)
    assert not (package / "imported").exists()


def test_the_working_folder_is_on_the_path_where_somebody_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert trusted_modules() == trusted_modules(None) == ()
    assert os.getcwd() not in sys.path
    assert trusted_modules(["a.b", "c"]) == ("a.b", "c")
    assert sys.path[-1] == os.getcwd()
