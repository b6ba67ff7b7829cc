"""The console command, and what differs between a checkout and a wheel; .ci/wheel installs one and uses it."""

import os
import subprocess
import sys
from pathlib import Path

import commands
import pytest
import yaml
from test_architecture import NAMES, imports, within

from meta_exp.installation import CONF, INSTALLED, typed, with_extra
from meta_exp.tasks.images import mini_imagenet, omniglot

REPO = Path(__file__).parents[1]


def meta_exp(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": str(REPO)}
    return commands.finished([sys.executable, "-m", "meta_exp", *words], folder, variables)


def test_a_checkout_has_its_conf_at_the_top():
    assert not INSTALLED
    assert CONF == REPO / "conf"
    assert typed("train", installed=True) == "meta-exp train"
    assert with_extra("ray", installed=True) == "pip install 'meta-exp[ray]'"


def test_the_command_names_its_words(tmp_path):
    for words in ((), ("--help",)):
        result = meta_exp(tmp_path, *words)
        assert result.returncode == 0
        assert all(f"\n  {word}" in result.stdout for word in ("train", "evaluate", "tasks"))
    result = meta_exp(tmp_path, "trian")
    assert result.returncode == 1
    assert result.stderr == "error: meta-exp: expected train, evaluate, tasks, got 'trian'; did you mean train?\n"


def test_train_and_evaluate_by_the_other_door(tmp_path):
    quick = ["algorithm=maml", "trainer=smoke", "logger=none", "test_tasks=10", "validation_tasks=5"]
    result = meta_exp(tmp_path, "train", *quick)
    assert result.returncode == 0, result.stderr
    [config] = (tmp_path / "outputs" / "sinusoid").glob("*/config.yaml")
    assert yaml.safe_load(config.read_text())["choices"]["algorithm"] == "maml"
    assert (config.parent / "train.log").exists()
    table = meta_exp(tmp_path, "evaluate", str(config.parent))
    assert table.returncode == 0, table.stderr
    assert "10 test tasks" in table.stdout
    slip = meta_exp(tmp_path, "train", "seeed=1")
    assert slip.returncode == 1
    assert slip.stderr.splitlines()[-1].startswith("error: ")
    assert "did you mean seed?" in slip.stderr


def test_two_processes_by_the_other_door(tmp_path):
    """Lightning starts the second one, by the module's name."""
    devices = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp"]
    quick = ["algorithm=maml", "trainer=smoke", "logger=none", "test_tasks=10", "validation_tasks=5"]
    result = meta_exp(tmp_path, "train", *quick, *devices, "hydra.run.dir=run")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("data_set", [omniglot, mini_imagenet], ids=["omniglot", "mini_imagenet"])
def test_fetching_without_learn2learn_names_the_extra(tmp_path, monkeypatch, data_set):
    for name in [name for name in sys.modules if within(name, ["learn2learn"])]:  # as another test has imported
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    with pytest.raises(ValueError, match=r"^dataset.download: expected learn2learn, .* uv run --extra learn2learn"):
        data_set.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_else_needs_what_the_extra_brings():
    for name in NAMES:
        assert not [path for path in imports(name) if within(path, ["learn2learn", "torchvision"])], name
