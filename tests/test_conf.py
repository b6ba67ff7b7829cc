"""Every option of every config group composes and builds, and the groups bring one another as documented."""

import re
from itertools import product
from pathlib import Path

import pytest
from conftest import compose_run
from omegaconf import OmegaConf

from meta_exp.algorithms import LLAMA, MAML
from meta_exp.config.keys import flatten
from meta_exp.config.schema import constructor
from meta_exp.curvature import GGN, LastLayer
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.models import MLP, Conv4
from meta_exp.runs.build import build, build_learner

CONF = Path(__file__).parents[1] / "conf"
OPTIONS = sorted(f"{file.parent.name}={file.stem}" for file in CONF.glob("*/*.yaml") if file.parent.name != "hydra")
NEEDS = {  # an option that does not go with the default experiment, and what it goes with
    "curvature=none": ["algorithm=maml"],
    "trainer=gpu": ["trainer.accelerator=auto"],
    "model=conv4": ["dataset=omniglot"],
    "model=conv4_small": ["dataset=omniglot"],
    "model=conv4_mini_imagenet": ["dataset=mini_imagenet"],
    "model=conv4_mini_imagenet_64": ["dataset=mini_imagenet"],
    "model=resnet12": ["dataset=omniglot"],
    "model=resnet12_small": ["dataset=omniglot"],
    "likelihood=categorical": ["dataset=omniglot"],
    "likelihood=probit": ["dataset=omniglot"],
    "likelihood=poisson": ["dataset._target_=counts.CountTasks", "trust=[counts]"],
}
CURVATURES = sorted(file.stem for file in (CONF / "curvature").glob("*.yaml"))
OF_THEIR_OWN = ("abml", "bmaml", "platipus")  # posteriors
OWN = {  # data of one's own, and the settings that it needs
    "image_folder": ("own_images", ["dataset.image_size=28", "dataset.channels=1", "dataset.ways=2"]),
    "csv": ("own_tables", []),
}
REFUSAL = r"[a-z_.]+=?\w*: expected .+, got .+"  # a key, and one line


def options(group):
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


@pytest.fixture
def own(request):
    """The overrides that bring a data set of one's own its data."""

    def overrides(dataset):
        if dataset not in OWN:
            return []
        fixture, settings = OWN[dataset]
        return [f"dataset.root={request.getfixturevalue(fixture)}", *settings]

    return overrides


def builds(cfg):
    """Whether ``cfg`` describes a learner, or else is refused in one line that names a key."""
    try:
        build_learner(cfg, constructor(cfg.dataset, "dataset")())
    except ValueError as error:
        if re.fullmatch(REFUSAL, str(error)):
            return False
        raise
    return True


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_builds(config, own, option):
    run = build(config(*NEEDS.get(option, []), option, *own(option.removeprefix("dataset="))))
    assert run.trainer.max_steps >= 1
    assert run.learner.evaluation_steps >= min(run.learner.algorithm.inner_steps, 1)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """What each option of model and curvature composes to, once for all."""
    folder = tmp_path_factory.mktemp("parts")
    models = {name: compose_run(folder, f"model={name}").model for name in options("model")}
    for name, model in models.items():  # a large one is slow to probe
        if name.startswith("resnet12"):
            model.channels = [8, 8, 8, 8]
        elif name.startswith("conv4"):
            model.filters = 16
    structures = {name: OmegaConf.load(CONF / "curvature" / f"{name}.yaml") for name in CURVATURES}
    for structure in filter(None, structures.values()):
        structure.prior_precision = 1.0  # resolving a config puts a number there
    return {"model": models, "curvature": structures}


@pytest.mark.parametrize("dataset", options("dataset"))
def test_every_choice_builds_where_it_has_a_meaning(config, parts, own, tmp_path, dataset):
    """What has none: Conv4 without images, LLAMA without a curvature, the dense Hessian of a large network.

    llama_predictive takes a curvature that finds the mode, and for classes likelihood=probit; what has a posterior of
    its own takes no curvature. Models and curvatures are put into one composed config for each algorithm.
    """
    images = dataset in ("omniglot", "mini_imagenet", "image_folder")
    for algorithm in options("algorithm"):
        cfg = config(f"dataset={dataset}", f"algorithm={algorithm}", *own(dataset), run_dir=tmp_path)
        assert (cfg.choices.dataset, cfg.choices.algorithm) == (dataset, algorithm)
        every_model = algorithm in ("maml", "llama", "llama_predictive")  # of the rivals' models none is special
        models = options("model") if every_model else [cfg.choices.model]
        for model, curvature in product(models, CURVATURES):
            cfg.model, cfg.curvature = parts["model"][model], parts["curvature"][curvature]
            cfg.choices.curvature = curvature
            meaning = (images or model.startswith("mlp")) and not (images and curvature == "hessian")
            meaning &= (algorithm, curvature) not in (("llama", "none"), ("llama_paper", "none"))
            meaning &= algorithm != "llama_predictive" or (curvature not in ("hessian", "none") and not images)
            meaning &= algorithm not in OF_THEIR_OWN or curvature == "none"
            assert builds(cfg) == meaning, (model, algorithm, curvature)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_a_choice_wins_over_what_an_algorithm_brings(config, tmp_path, curvature):
    """Both brought by one command line, as the product above does not compose them."""
    for algorithm in options("algorithm"):
        cfg = config(f"algorithm={algorithm}", f"curvature={curvature}", run_dir=tmp_path)
        assert (cfg.choices.algorithm, cfg.choices.curvature) == (algorithm, curvature)


@pytest.mark.parametrize("experiment", options("experiment"))
def test_an_experiment_takes_another_choice(config, tmp_path, experiment):
    images = "omniglot" in experiment or "imagenet" in experiment
    for choices in (["model=mlp"], ["model=conv4"], ["curvature=none", "algorithm=maml"], ["algorithm=llama"]):
        cfg = config(f"experiment={experiment}", *choices, run_dir=tmp_path)
        assert builds(cfg) == (images or choices != ["model=conv4"]), choices


@pytest.mark.parametrize("experiment", options("experiment"))
def test_what_an_experiment_sets_is_what_composes(tmp_path, experiment):
    """No group that is chosen behind it, as the trainer is, takes a value back."""
    cfg = compose_run(tmp_path, f"experiment={experiment}")
    own = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
    values = flatten(
        {key: part for key, part in OmegaConf.to_container(own).items() if key not in ("defaults", "hydra")}
    )
    assert {key: OmegaConf.select(cfg, key) for key in values} == values


@pytest.mark.parametrize("group", ["dataset", "experiment"])
def test_a_model_is_brought_by_name(group):
    """Keys of one model would break every other; a model for a use is an option of its own."""
    for option in options(group):
        assert "model" not in OmegaConf.load(CONF / group / f"{option}.yaml"), option


def test_an_mlp_trains_on_images(config, omniglot_root):
    cfg = config("dataset=omniglot", "model=mlp", "trainer=smoke", "dataset.meta_batch=2", "dataset.queries=2")
    run = build(cfg)
    run.trainer.fit(run.learner, run.stream)
    assert run.trainer.global_step == 4


def test_miniimagenet_has_the_network_of_its_paper(config):
    for option in ("dataset=mini_imagenet", "experiment=miniimagenet_5way_5shot"):
        model = config(option).model
        assert (model.filters, model.downsample) == (32, "max_pool")
    assert config("experiment=omniglot_curvature_ablation").model.filters == 32


PAPERS = {  # of MAML's: ways, shots, query images a class, meta-batch, steps in training and in test, rate in its code
    "omniglot_5way_1shot_paper": (5, 1, 1, 32, 1, 3, 0.4),
    "omniglot_5way_5shot_paper": (5, 5, 5, 32, 1, 3, 0.4),
    "omniglot_20way_1shot_paper": (20, 1, 1, 16, 5, 5, 0.1),
    "omniglot_20way_5shot_paper": (20, 5, 5, 16, 5, 5, 0.1),
    "miniimagenet_5way_1shot": (5, 1, 15, 4, 5, 10, 0.01),
    "miniimagenet_5way_5shot": (5, 5, 15, 4, 5, 10, 0.01),
}
BESIDE = {f"{name}_llama": name for name in PAPERS if name.startswith("omniglot")}
BESIDE["miniimagenet_5way_1shot_llama"] = "miniimagenet_5way_1shot"
CURVES = {"sinusoid_5shot_paper": 5, "sinusoid_10shot_paper": 10}


@pytest.mark.parametrize("experiment", [*PAPERS, *BESIDE])
def test_the_settings_of_papers(config, experiment):
    """The code's rate is on a sum over the support set, divided by the shots: as many times on our mean as ways."""
    cfg = config(f"experiment={experiment}")
    ways, shots, queries, meta_batch, steps, in_test, rate = PAPERS[BESIDE.get(experiment, experiment)]
    data, algorithm = cfg.dataset, cfg.algorithm
    assert (data.ways, data.shots, data.queries, data.meta_batch) == (ways, shots, queries, meta_batch)
    assert (algorithm.inner_steps, cfg.evaluation_steps) == (steps, in_test)
    assert algorithm.inner_lr == pytest.approx(ways * rate)
    assert list(algorithm.stay) == ["norm"]
    assert (cfg.optimizer.lr, cfg.test_tasks, cfg.name) == (0.001, 600, experiment)
    assert cfg.trainer.max_steps == (40000 if experiment.startswith("omniglot") else 60000)
    assert cfg.algorithm._target_.rpartition(".")[2] == ("LLAMA" if experiment in BESIDE else "MAML")


def test_the_settings_of_llamas_paper(config):
    """K-FAC of the queries' curvature, norms left out, and the weight that its section 5.2 names."""
    cfg = config("experiment=miniimagenet_5way_1shot_llama")
    assert (cfg.choices.curvature, cfg.algorithm.data, cfg.algorithm.eta) == ("kfac", "query", 1e-6)
    assert (cfg.model.filters, cfg.model.downsample, cfg.trainer.gradient_clip_val) == (64, "max_pool", 10)
    treated = build(cfg).learner.algorithm.curvature.taps.layers
    assert list(treated) == [f"blocks.{i}.0" for i in range(4)] + ["head"]


@pytest.mark.parametrize("experiment", CURVES)
def test_the_settings_of_sinusoids(config, experiment):
    cfg, shots = config(f"experiment={experiment}"), CURVES[experiment]
    assert (cfg.dataset.shots, cfg.dataset.queries, cfg.dataset.meta_batch, cfg.dataset.noise) == (shots, shots, 25, 0)
    assert (cfg.algorithm.inner_lr, cfg.algorithm.inner_steps, cfg.trainer.max_steps) == (0.001, 1, 70000)
    assert (list(cfg.model.widths), cfg.model.activation, cfg.optimizer.lr) == ([40, 40], "relu", 0.001)


@pytest.mark.parametrize("experiment", [*PAPERS, *BESIDE, *CURVES])
def test_what_a_papers_preset_begins_with(experiment):
    """Source, or that of the preset which it names; its command; time on two cores and on a GPU; what was reported."""
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    head = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    assert re.search("[Ss]ource", head)
    assert f"uv run train.py experiment={experiment} " in f"{head} "
    assert re.search(r"Time: two cores .+; GPU", head)
    assert re.search(r"[Rr]eported", head)
    assert re.search(r"\d ± \.?\d|MSE \d", head)


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
    assert config().trainer.max_steps == 10000


def test_a_gpu_takes_all_tasks_at_once(config):
    """Also of an experiment that names a chunk, whose length and rates stay."""
    preset = config("experiment=omniglot_20way_1shot_paper")
    cfg = config("experiment=omniglot_20way_1shot_paper", "trainer=gpu")
    assert (preset.chunk_size, cfg.chunk_size, cfg.trainer.accelerator) == (2, None, "gpu")
    assert (cfg.trainer.max_steps, cfg.algorithm) == (preset.trainer.max_steps, preset.algorithm)


def test_a_curvature_with_maml_is_for_evaluation(config):
    learner = build(config("algorithm=maml", "curvature=ggn")).learner
    assert type(learner.algorithm.curvature) is GGN
    assert learner.predictives == ["map", "linearized"]


def test_predictives_without_curvature_are_left_out(config):
    assert build(config("algorithm=maml")).learner.predictives == ["map"]


def test_names_that_others_script_against(config):
    cfg = config("algorithm=llama")
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
