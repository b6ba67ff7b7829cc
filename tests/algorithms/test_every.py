"""Every algorithm with every data set and likelihood, with curvatures after the fact, and from a config to use."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning import Callback

import meta_exp
from meta_exp.comparison.compare import compare
from meta_exp.config.schema import constructor
from meta_exp.runs.build import build, build_learner
from meta_exp.tasks.episode import Episode, Examples
from meta_exp.tasks.stream import draw_tasks
from meta_exp.training.learner import TRAINING

CONF = Path(__file__).parents[2] / "conf"
ALGORITHMS, DATASETS, LIKELIHOODS = (
    sorted(file.stem for file in (CONF / group).glob("*.yaml")) for group in ("algorithm", "dataset", "likelihood")
)
OWN = {  # files of one's own
    "csv": ("own_tables", []),
    "image_folder": ("own_images", ["dataset.image_size=28", "dataset.channels=1", "dataset.ways=2"]),
}
NEW = ["abml", "anil", "bmaml", "boil", "maml_plus_plus", "meta_sgd", "platipus", "reptile"]
ONE_NETWORK = ["anil", "boil", "maml", "maml_plus_plus", "meta_sgd", "reptile"]
CURVATURES = ["diagonal", "ggn", "hessian", "kfac", "last_layer"]
QUICK = ["trainer=smoke", "model.widths=[8,8]", "test_tasks=6", "validation_tasks=6", "evaluation_steps=2", "samples=4"]


def part(group, option):
    return OmegaConf.load(CONF / group / f"{option}.yaml")


def drawn(family, tasks=2, points=6):
    """A meta-batch of the family's shapes; of images none is read."""
    if not family.classes:
        return draw_tasks(family, "train", 0, tasks)
    torch.manual_seed(0)
    sets = [torch.rand(tasks, points, *family.input_shape) for _ in range(2)]
    return Episode(*(Examples(x, torch.arange(points).expand(tasks, -1) % family.outputs) for x in sets))


@pytest.mark.parametrize("dataset", [*DATASETS, "counts"])
def test_trains_a_step_or_is_refused_by_name(config, request, tmp_path, dataset):
    """What is refused: targets of another kind, and for llama_predictive what has no predictive in closed form."""
    images = dataset in ("omniglot", "mini_imagenet", "image_folder")
    targets = {"counts": ("gaussian", "heteroscedastic", "poisson")}
    fits = ("categorical", "probit") if images else targets.get(dataset, ("gaussian", "heteroscedastic"))
    for algorithm in ALGORITHMS:
        chosen = [f"dataset={dataset}"]
        if dataset == "counts":
            chosen = ["dataset._target_=counts.CountTasks", "trust=[counts]"]
        if dataset in OWN:
            fixture, settings = OWN[dataset]
            chosen += [f"dataset.root={request.getfixturevalue(fixture)}", *settings]
        small = ["model.filters=4"] if images else ["model.widths=[4]"]
        curvature = ["curvature=last_layer"] if "llama" in algorithm else []
        cfg = config(*chosen, *small, *curvature, f"algorithm={algorithm}", "algorithm.inner_steps=1", run_dir=tmp_path)
        family = constructor(cfg.dataset, "dataset")()
        episodes = drawn(family)
        for likelihood in LIKELIHOODS:
            cfg.likelihood = part("likelihood", likelihood)
            meaning = likelihood in fits
            meaning &= algorithm != "llama_predictive" or likelihood in ("gaussian", "probit")
            if not meaning:
                with pytest.raises(ValueError, match=r"^[a-z_.= A-Z]+: expected .+, got .+") as refused:
                    build_learner(cfg, family)
                assert "\n" not in str(refused.value)
                continue
            learner = build_learner(cfg, family)
            noise = learner.path_noise(episodes, (TRAINING, 0, 0))
            objective, gradient, hyper_gradient, _ = learner.meta_gradient(episodes, noise=noise)
            of = (algorithm, likelihood)
            assert objective.isfinite(), of
            assert all(value.isfinite().all() for value in (*gradient.values(), *hyper_gradient.values())), of
            assert any(value.any() for value in gradient.values()), of


@pytest.mark.parametrize("algorithm", ONE_NETWORK)
def test_a_curvature_after_the_fact(config, tmp_path, algorithm):
    """Every structure gives a posterior to each algorithm that ends in one network, scored and drawn from."""
    small = ["model.widths=[4]", "algorithm.inner_steps=1", "evaluation_steps=2", "samples=3"]
    for curvature in CURVATURES:
        cfg = config(
            *small,
            f"algorithm={algorithm}",
            f"curvature={curvature}",
            "predictives=[map,sample,linearized]",
            run_dir=tmp_path,
        )
        family = constructor(cfg.dataset, "dataset")()
        learner = build_learner(cfg, family)
        scores = learner.evaluate(draw_tasks(family, "test", 0, 2), learner.evaluation_steps, learner.predictives).each
        for kind in ("map", "sample", "linearized"):
            assert scores[f"{kind}/nll"].isfinite().all(), (curvature, kind)


@pytest.mark.parametrize("algorithm", ONE_NETWORK)
def test_a_curvature_after_the_fact_of_images(config, tmp_path, algorithm):
    """In networks with batch statistics, by the two structures that images take at no great cost."""
    small = ["dataset=omniglot", "model.filters=4", "algorithm.inner_steps=1", "evaluation_steps=2", "samples=3"]
    for curvature in ("last_layer", "kfac"):
        chosen = [f"algorithm={algorithm}", f"curvature={curvature}", "predictives=[map,sample,linearized]"]
        cfg = config(*small, *chosen, run_dir=tmp_path)
        family = constructor(cfg.dataset, "dataset")()
        learner = build_learner(cfg, family)
        scores = learner.evaluate(drawn(family), learner.evaluation_steps, learner.predictives).each
        for kind in ("map", "sample", "linearized"):
            assert scores[f"{kind}/nll"].isfinite().all(), (curvature, kind)


@pytest.mark.parametrize("algorithm", NEW)
def test_from_a_config_to_use(trained, algorithm):
    """Trained, calibrated, tested, pictured, restored, and used on a new task as MAML's runs are."""
    folder = trained(f"every_{algorithm}", *QUICK, "dataset=sinusoid", f"algorithm={algorithm}")
    assert (folder / "plots" / "fan.png").exists()
    learner = meta_exp.load(folder)
    x = np.linspace(-4, 4, 5)[:, None]
    task = learner.adapt(x, np.sin(x[:, 0]))
    found = task.predict(x)
    assert np.isfinite(found.mean).all()
    assert (found.variance > 0).all()
    served = learner.learner.served[learner.kinds[-1]]["log_sigma_noise"].exp() ** 2
    assert (found.variance >= float(served) * (1 - 1e-5)).all()
    if algorithm in ONE_NETWORK:
        with pytest.raises(ValueError, match="sample: expected a run with a curvature, got curvature=none"):
            task.sample()
        assert meta_exp.load(folder, ["curvature=ggn"]).adapt(x, x[:, 0]).predict(x).mean.shape == (5,)
        return
    networks = task.sample(8)
    curves = np.stack([network(x) for network in networks])
    assert curves.std(0).min() > 0, "they differ"
    again = task.predict(x, kind="sample", samples=8) if "sample" in learner.kinds else None
    if again:
        np.testing.assert_allclose(curves.mean(0), again.mean, rtol=1e-5, atol=1e-6)
    else:
        mixed = learner.learner.algorithm.predict("map", *_state(task), None).outputs[..., 0]
        assert all((abs(mixed.numpy() - curve).max(1) < 1e-5).any() for curve in curves), "each is a particle"
    with pytest.raises(ValueError, match=f"algorithm={algorithm}: expected no curvature, got curvature=ggn"):
        meta_exp.load(folder, ["curvature=ggn"])
    with pytest.raises(ValueError, match="kind=linearized: expected one of map"):
        task.predict(x, kind="linearized")


def _state(task):
    x = torch.linspace(-4, 4, 5)[:, None]
    return task.served["map"].params, x


def test_runs_of_all_kinds_are_compared(trained, tmp_path, capsys):
    """In one table, and with MAML by seed and task where all else is alike."""
    names = [*NEW, "maml"]
    for name in names:
        folder = trained(f"every_{name}", *QUICK, "dataset=sinusoid", f"algorithm={name}")
        shutil.copytree(folder, tmp_path / name)
    assert compare([tmp_path / name for name in names], ["test_tasks=5"]) == 0
    out = capsys.readouterr().out
    for name in NEW:
        assert name in out
    for name in ("anil", "boil", "meta_sgd", "platipus"):  # the inner rate of bmaml is another
        assert f"{name} - maml" in out


class Killed(Callback):
    """Ends a training behind its third step."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 3:
            raise RuntimeError("killed")


@pytest.mark.parametrize("algorithm", ["abml", "platipus"])
def test_goes_on_bit_by_bit(config, tmp_path, algorithm):
    """Noise is a function of seed, step and task: a run that was killed ends as one that was not."""
    quick = [*QUICK, "trainer.max_steps=6", "callbacks.last.every_n_steps=1", "logger=none", "dataset=sinusoid"]
    ends = []
    for killed in (False, True):
        (tmp_path / str(killed)).mkdir()
        cfg = config(*quick, f"algorithm={algorithm}", run_dir=tmp_path / str(killed))
        run = build(cfg)
        if killed:
            run.trainer.callbacks.append(Killed())
            with pytest.raises(RuntimeError, match="killed"):
                run.trainer.fit(run.learner, run.stream)
            run = build(cfg)
            last = tmp_path / "True" / "last.ckpt"
            assert torch.load(last, weights_only=True)["global_step"] == 2  # written as a step begins
            run.trainer.fit(run.learner, run.stream, ckpt_path=last, weights_only=True)
        else:
            run.trainer.fit(run.learner, run.stream)
        assert run.trainer.global_step == 6
        ends.append(run.learner.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
