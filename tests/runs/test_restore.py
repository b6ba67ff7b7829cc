"""A run's folder gives back what was trained, to the bit; damaged, foreign and hostile folders are refused by name."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from meta_exp.curvature import Diagonal
from meta_exp.runs.build import build
from meta_exp.runs.restore import CONF, load_config, open_run
from meta_exp.runs.trust import MODULES, NEVER_BUILT, refuse_unsafe
from meta_exp.training.meta_gradient import MetaGradient


@pytest.fixture
def copy(sinusoid_run, tmp_path):
    """A copy of the run, to damage."""
    return Path(shutil.copytree(sinusoid_run, tmp_path / "copy"))


def edit(folder, change):
    file = folder / "config.yaml"
    cfg = OmegaConf.load(file)
    change(cfg)
    file.write_text(OmegaConf.to_yaml(cfg))


def test_the_learner_is_the_one_that_was_tested(sinusoid_run):
    run = open_run(sinusoid_run)
    theta = run.learner.meta().theta
    best = torch.load(sinusoid_run / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    assert all(torch.equal(value, best[f"model.{name}"]) for name, value in theta.items())
    assert run.metrics["test/tasks"] == 20
    assert not run.learner.training


def test_chunks_that_a_trial_found_are_kept(trained, config, tmp_path, monkeypatch):
    """By evaluation, for its digits, and by a run that goes on; another trial might end with others."""
    auto = ["trainer=smoke", "logger=none", "model.widths=[4]", "test_tasks=2", "validation_tasks=2", "chunk_size=auto"]
    folder = trained("auto_chunks", *auto)
    found = json.loads((folder / "metrics.json").read_text())["chunk_size"]
    assert found >= 1
    assert open_run(folder).learner.gradient.at_once == found
    assert open_run(folder, ["chunk_size=3"]).learner.gradient.at_once == 3
    monkeypatch.setattr(MetaGradient, "_fastest", None)
    (tmp_path / "run").mkdir()
    shutil.copy(folder / "last.ckpt", tmp_path / "run")
    run = build(config(*auto, "trainer.max_steps=6", run_dir=tmp_path / "run"))
    run.trainer.fit(run.learner, run.stream, ckpt_path=tmp_path / "run" / "last.ckpt", weights_only=True)
    assert run.trainer.global_step == 6
    assert run.learner.gradient.chunk_size == found


def test_a_tuned_tau_comes_with_the_run(copy):
    """It is that of the posteriors, unless an override is about the curvature; a damaged file is refused."""
    file = copy / "prior_precision.json"
    file.write_text('{"prior_precision": 46.4, "criterion": "linearized"}')
    assert open_run(copy).learner.prior_precision == pytest.approx(46.4)
    assert open_run(copy, ["curvature.prior_precision=7"]).learner.prior_precision == 7
    for text in ("{", '{"prior_precision": -1}', '{"prior_precision": "a"}', "{}"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"prior_precision\.json.*expected a .*precision"):
            open_run(copy)


def test_restoring_leaves_random_generators_alone(sinusoid_run):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    open_run(sinusoid_run)
    assert torch.equal(torch.rand(3), expected)


def test_overrides(sinusoid_run):
    overrides = ["curvature.prior_precision=7", "curvature=diagonal", "dataset.shots=5", "predictives=[map,sample]"]
    run = open_run(sinusoid_run, [*overrides, "evaluation_steps=3"])
    assert isinstance(run.learner.algorithm.curvature, Diagonal)
    assert run.learner.algorithm.curvature.prior_precision == 7
    assert run.cfg.choices.curvature == "diagonal"
    assert run.family.shots == 5
    assert (run.learner.evaluation_steps, run.learner.predictives) == (3, ["map", "sample"])


@pytest.mark.parametrize("option", sorted(file.stem for file in (CONF / "curvature").glob("*.yaml")))
def test_every_curvature_after_the_fact(character_run, option):
    """With the tau of classes, which the one training step of 0.4 on three drawings implies."""
    curvature = open_run(character_run, [f"curvature={option}"]).learner.algorithm.curvature
    assert (curvature is None) == (option == "none")
    assert option == "none" or curvature.prior_precision == 3 / 0.4


def test_a_learned_value_can_be_fixed_after_the_fact(sinusoid_run):
    run = open_run(sinusoid_run, ["likelihood.sigma_noise=0.5", "likelihood.learned=false"])
    assert run.learner.algorithm.likelihood.at({}).sigma_noise == 0.5


REFUSED_OVERRIDES = {
    "scores=": "scores: expected scores by name, got ''",
    "curvature.prior_precision=${nothing}": r"curvature.prior_precision: expected a plain value, got '\$\{nothing\}'",
    "curvature=diagnal": "curvature: expected one of diagonal, ggn, .*, got diagnal",
    "algorithm=maml": "algorithm=maml: expected curvature, the group that evaluation may change",
    "algorithm.iner_lr=1": "algorithm.iner_lr: .* did you mean algorithm.inner_lr?",
    "algorithm.inner_steps=3": "algorithm.inner_steps: .* only training uses; use evaluation_steps",
    "model.widths=[3]": "model.widths: .* got a key that only training uses",
    "+dataset.colour=red": "dataset.colour: expected a known key",
    "likelihood.sigma_noise=2": "a value that is not learned, got one; add likelihood.learned=false",
    "curvature.learned=true": "curvature.learned=true: expected algorithm.prior_term=true",
    "samples=0": "samples: expected at least 1, got 0",
    "samples=few": "samples: expected a valid integer",
    "predictives={a:1}": "predictives: expected another structure",
    "dataset.shots=0": "dataset.shots: expected at least 1, got 0",
    "samples=1,2": "samples=1,2: expected key=value, got a deletion, a sweep or a package",
    "~samples": "~samples: expected key=value",
    "a b": "a b",
    "dataset._target_=os.system": "dataset._target_: expected a class of meta_exp.*, got os.system",
}


@pytest.mark.parametrize("override", REFUSED_OVERRIDES)
def test_an_override_that_does_not_fit_is_refused(sinusoid_run, override):
    with pytest.raises(ValueError, match=REFUSED_OVERRIDES[override]) as refusal:
        open_run(sinusoid_run, [override])
    assert "\n" not in str(refusal.value)


def test_the_ways_are_trained(character_run):
    with pytest.raises(ValueError, match=r"dataset\.ways: expected 3, which the network was trained for, got 5"):
        open_run(character_run, ["dataset.ways=5"])
    assert open_run(character_run, ["dataset.ways=3", "dataset.shots=5"]).family.shots == 5


def test_damaged_folders_are_refused(copy, tmp_path):
    def refused(message):
        with pytest.raises(ValueError, match=message) as refusal:
            open_run(copy)
        assert "\n" not in str(refusal.value)

    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: expected a run's folder, with config\.yaml"):
        open_run(tmp_path / "empty")
    with pytest.raises(ValueError, match="nowhere: expected a run's folder, got nothing there"):
        open_run(tmp_path / "nowhere")
    state = torch.load(copy / "best.ckpt", weights_only=True)
    wide = {**state["state_dict"], "model.5.weight": torch.zeros(2, 40)}
    torch.save({**state, "state_dict": wide}, copy / "best.ckpt")
    refused(r"best\.ckpt: expected model\.5\.weight of shape \(1, 40\), got model\.5\.weight of shape \(2, 40\)")
    torch.save({"state_dict": {"model.1.weight": [1.0]}}, copy / "best.ckpt")
    refused(r"best\.ckpt: expected a checkpoint whose state_dict holds tensors")
    whole = (copy / "last.ckpt").read_bytes()
    for damaged in (b"", b"no checkpoint", whole[: len(whole) // 2], whole[:3000] + b"\0" * 500 + whole[3500:]):
        (copy / "best.ckpt").write_bytes(damaged)
        refused(r"best\.ckpt: expected a checkpoint")
    (copy / "best.ckpt").unlink()
    refused(r"best\.ckpt: expected the run's best checkpoint, got no such file")
    (copy / "metrics.json").write_text('{"a":')
    refused(r"metrics\.json: expected the metrics of a run")
    (copy / "metrics.json").unlink()
    refused(r"copy: expected a finished run, with metrics\.json, got an unfinished one")


BAD_CONFIGS = {
    "": "got .*",
    "- a": "a run's config",
    "a: [": "expected a run's config, got while parsing",
    "a: 1\na: 2": "found duplicate key a",
    "format: 1": "expected a run's config, got no dataset, model",
    "\x00": "special characters",
    "format: 1\na: &a [1]\nb: *a": "aliases",
    "format: 1\nd: &a [&b [x, x], *b]": "aliases",
    "a: " + "[" * 60 + "]" * 60: "more than 50 levels",
    "a: " + "[" * 100_000: "more than 50 levels",
    "a: " + "x" * 2**20: "more than 1048576 bytes",
    "a: !!python/object/apply:os.system [touch hacked]": "could not determine a constructor for the tag",
}


@pytest.mark.parametrize("text", BAD_CONFIGS)
def test_what_is_no_config_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=BAD_CONFIGS[text]) as refusal:
        load_config(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("saved", "got"), [(None, "none"), (2, "format: 2")])
def test_another_format_is_refused(copy, saved, got):
    edit(copy, lambda cfg: cfg.pop("format") if saved is None else cfg.update(format=saved))
    with pytest.raises(ValueError, match=f"config.yaml: expected format: 1, got {got}; restore it with the version"):
        open_run(copy)


HOSTILE = {
    "dataset._target_": "os.system",
    "model._target_": "meta_exp.runs.train.train",
    "likelihood._target_": "meta_exp.runs.train.os.system",
    "curvature._target_": "meta_exp.models.MLP",
    "algorithm._target_": "builtins.eval",
    "optimizer._target_": "torch.optim.lr_scheduler.LambdaLR",
    "trainer._target_": "subprocess.run",
    "logger.wandb._target_": "os.system",
    "callbacks.best._target_": "shutil.rmtree",
    "model.inner": {"_target_": "pytorch_lightning.loggers.CSVLogger"},
    "model.extra": [{"_target_": "os.system", "command": "touch hacked"}],
    "dataset.extra": {"deep": {"_target_": "meta_exp.models.MLP"}},
    "model._args_": ["touch hacked"],
    "dataset._partial_": True,
    "dataset.root": "${oc.env:HOME}",
    "name": "${oc.decode:'1'}",
    "_target_": "os.system",
    "run_name": {"_call_": False},
}


@pytest.mark.parametrize("key", HOSTILE)
def test_a_hostile_config_is_refused_by_name(copy, key, monkeypatch):
    monkeypatch.chdir(copy)
    edit(copy, lambda cfg: OmegaConf.update(cfg, key, HOSTILE[key], force_add=True))
    with pytest.raises(ValueError, match=rf"config.yaml: {key.split('.')[0]}.*expected"):
        open_run(copy)
    assert not (copy / "hacked").exists()


def test_a_hostile_checkpoint_runs_nothing(copy, monkeypatch):
    class Payload:
        def __reduce__(self):
            return eval, ("open('hacked', 'w').close()",)

    monkeypatch.chdir(copy)
    for save in (torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))):
        save({"state_dict": {"model.1.weight": Payload()}}, copy / "best.ckpt")
        with pytest.raises(ValueError, match=r"best\.ckpt: expected a checkpoint of tensors and plain values"):
            open_run(copy)
    assert not (copy / "hacked").exists()


@pytest.mark.parametrize(
    ("saved", "variable", "override", "root"),
    [
        ("/etc", "", "", "data"),
        ("~/.ssh", "", "", "data"),
        ("~root/.ssh", "", "", "data"),
        ("../secret", "", "", "data"),
        ("a/../../secret", "", "", "data"),
        ("mine/sets", "", "", "mine/sets"),
        ("/etc", "/data/sets", "", "/data/sets"),
        ("mine/sets", "/data/sets", "", "/data/sets"),
        ("/etc", "/data/sets", "/elsewhere", "/elsewhere"),
    ],
)
def test_a_saved_config_neither_fetches_nor_says_where_to_read(
    character_run, tmp_path, monkeypatch, saved, variable, override, root
):
    folder = Path(shutil.copytree(character_run, tmp_path / "copy"))
    edit(folder, lambda cfg: cfg.dataset.update(root=saved, download=True))
    monkeypatch.setenv("META_EXP_DATA", variable)
    family = open_run(folder, [f"dataset.root={override}"] if override else []).family
    assert (family.root, family.download) == (root, False)
    assert open_run(folder, ["dataset.download=true"]).family.download


@pytest.mark.parametrize(
    ("saved", "variable", "root"),
    [
        ("mine/letters", "", "mine/letters"),
        ("mine/letters", "/data/sets", "mine/letters"),
        ("/home/a/letters", "", "data/letters"),
        ("/home/a/letters", "/data/sets", "/data/sets/letters"),
        ("../..", "", "data/data"),
        ("~", "", "data/~"),
        ("/", "", "data/data"),
    ],
)
def test_a_folder_of_ones_own_is_looked_for_by_its_name(sinusoid_run, tmp_path, monkeypatch, saved, variable, root):
    """META_EXP_DATA holds what can be fetched, and is no answer to a folder of another name."""
    folder = Path(shutil.copytree(sinusoid_run, tmp_path / "copy"))
    settled = {"root": saved, "x": ["a"], "y": ["b"], "x_mean": [0], "x_std": [1], "y_mean": [0], "y_std": [1]}
    edit(folder, lambda cfg: cfg.update(dataset={"_target_": "meta_exp.tasks.CsvTasks", **settled}))
    monkeypatch.setenv("META_EXP_DATA", variable)
    assert open_run(folder).family.root == root


def test_a_saved_config_reads_no_lists_elsewhere(character_run, tmp_path):
    folder = Path(shutil.copytree(character_run, tmp_path / "copy"))
    edit(
        folder,
        lambda cfg: cfg.update(dataset={"_target_": "meta_exp.tasks.ImageFolder", "root": "x", "splits": "/etc"}),
    )
    with pytest.raises(ValueError, match=r"dataset.splits: expected a folder below dataset.root, got /etc"):
        open_run(folder)


def test_everything_in_conf_may_be_named():
    named = set()
    for group in CONF.iterdir():
        if group.is_dir() and group.name not in ("hydra", "experiment"):
            for file in group.glob("*.yaml"):
                part = yaml.safe_load(file.read_text()) or {}
                part = part.get(group.name, part)
                refuse_unsafe({group.name: _plain(part)})
                named |= {(group.name, target.rpartition(".")[0]) for target in _targets(part)}
    assert named == {*MODULES.items(), *((group, module) for group in NEVER_BUILT for module in NEVER_BUILT[group])}


def _plain(node):
    """``node`` as it is once it is resolved."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return "" if isinstance(node, str) and "${" in node else node


def _targets(node):
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "_target_")
        for value in node.values():
            yield from _targets(value)
