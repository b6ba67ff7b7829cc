"""Runs that predict together: the mean of the members' densities, their values, and the command."""

import csv

import commands
import pytest
import torch
from oracles import assert_equal
from torch.func import vmap
from torch.utils._pytree import tree_map, tree_map_only

from meta_exp.adaptation import adapt
from meta_exp.comparison import compare as comparison
from meta_exp.comparison.ensemble import Ensemble, refuse_unlike
from meta_exp.config.schema import constructor
from meta_exp.runs.build import build_learner
from meta_exp.runs.test_set import score_batches, score_tasks
from meta_exp.tasks.episode import Episode, Examples
from meta_exp.tasks.stream import draw_tasks
from meta_exp.training.data import EvaluationBatches
from meta_exp.training.learner import EVALUATION

CPU = torch.device("cpu")


def learners(config, tmp_path, *overrides):
    """Three with other weights, and values as if they were fitted, in float64; and their family."""
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        given = ["model.widths=[6]", "samples=3", "evaluation_steps=2", "likelihood.sigma_noise=0.5", *overrides]
        cfg = config("dataset=sinusoid", *given, "predictives=[map,linearized,sample]", run_dir=tmp_path)
        family = constructor(cfg.dataset, "dataset")()
        learner = build_learner(cfg, family).double().eval()
        names = learner.algorithm.free()
        values = {name: torch.tensor(0.1 * seed + 0.7).double() for name in names if "sigma" in name}
        learner.served = dict.fromkeys(learner.predictives, values)
        found.append(learner)
    return found, family


def double(episodes):
    return tree_map(lambda value: value.double(), episodes)


@pytest.mark.parametrize(
    "overrides",
    [["algorithm=maml", "curvature=ggn"], ["algorithm=abml"], ["algorithm=bmaml", "algorithm.particles=2"]],
)
def test_is_the_mean_of_the_members_densities(config, tmp_path, overrides):
    """Task by task, by a loop over members that knows nothing of ensembles."""
    members, family = learners(config, tmp_path, *overrides, "likelihood.learned=true")
    episodes = double(draw_tasks(family, "test", 0, 3))
    together = Ensemble(members)
    for factor in (1.0, 1.5):
        together.factors = dict.fromkeys(together.predictives, factor) if factor != 1 else {}
        scores = together.evaluate(episodes, seed=5).each
        for kind in members[0].predictives:
            densities = []
            for member in members:
                noise, draws = member.path_noise(episodes, (EVALUATION, 5)), member.draws(episodes, 5)
                for task in range(3):
                    one, z, drawn = tree_map_only(
                        torch.Tensor, lambda value, task=task: value[task], (episodes, noise, draws)
                    )
                    meta = member.meta()._replace(noise=z)
                    meta = meta._replace(hyper=meta.hyper | member.served[kind])
                    end = adapt(member.algorithm, one.support, meta, 2)
                    around = member.algorithm.posterior(end, one.support, meta)
                    found = member.algorithm.predict(kind, end, one.query.x, meta, around, drawn)
                    sigma = float(member.served[kind]["log_sigma_noise"].exp()) * factor
                    variance = found.covariance[..., 0] + sigma**2
                    normal = torch.distributions.Normal(found.outputs[..., 0], variance[..., 0].sqrt())
                    densities.append(normal.log_prob(one.query.y[..., 0]).exp().mean(0))
            mean = torch.stack(densities).view(3, 3, -1).mean(0)
            assert_equal(scores[f"{kind}/nll"], -mean.log().mean(1))


@pytest.mark.parametrize("algorithm", [["algorithm=llama_predictive"], ["algorithm=platipus"]])
def test_of_one_is_that_one(config, tmp_path, algorithm):
    [member, *_], family = learners(config, tmp_path, *algorithm)
    together = Ensemble([member])
    together.fit([draw_tasks(family, "validation", 0, 3)])
    assert not together.factors
    member = member.float()
    alone = score_tasks(member, family, 9, CPU)
    mixed = score_batches(together.evaluate, family, 9, CPU)
    for kind in together.predictives:
        names = [name for name in mixed.each if name.startswith(f"{kind}/")]
        assert {f"{kind}/nll", f"{kind}/nll_raw", f"{kind}/mse", f"{kind}/crps", f"{kind}/auroc"} <= set(names)
        for name in names:
            torch.testing.assert_close(mixed.each[name], alone.each[name], equal_nan=True, rtol=1e-5, atol=1e-6)


def test_one_factor_is_fitted_where_it_helps(config, tmp_path):
    """Members that are too sure together become less so, and the validation's NLL is at its least there."""
    members, family = learners(config, tmp_path, "algorithm=maml", "curvature=ggn", "likelihood.learned=true")
    together = Ensemble(members)
    batches = [double(episodes) for episodes in EvaluationBatches(family, "validation", 12)]

    def nll(kind):
        scores = [together.evaluate(episodes, seed=k).each[f"{kind}/nll"] for k, episodes in enumerate(batches)]
        return float(torch.cat(scores).mean())

    before = {kind: nll(kind) for kind in together.predictives}
    together.fit(batches)
    assert set(together.factors) == {"map", "linearized", "sample"}
    for kind, factor in list(together.factors.items()):
        least = nll(kind)
        assert least < before[kind]
        for other in (0.9, 1.1):
            together.factors[kind] = other * factor
            assert nll(kind) > least - 1e-4


def test_classes_have_the_mean_of_probabilities(config, tmp_path):
    members = []
    for seed in range(2):
        torch.manual_seed(seed)
        chosen = ["dataset=omniglot", "model.filters=4", "algorithm=maml", "curvature=last_layer", "dataset.ways=2"]
        cfg = config(*chosen, "samples=3", "predictives=[map,sample]", run_dir=tmp_path)
        members.append(build_learner(cfg, constructor(cfg.dataset, "dataset")()).double().eval())
        members[-1].served = {"map": {"log_temperature": torch.tensor(float(seed)).double()}}
    torch.manual_seed(7)
    x, y = torch.rand(2, 2, 4, 1, 28, 28).double(), torch.arange(4).expand(2, 4) % 2
    episodes = Episode(Examples(x[0], y), Examples(x[1], y))
    scores = Ensemble(members).evaluate(episodes, seed=0).each

    def probabilities(member):
        def one(episode):
            params = adapt(member.algorithm, episode.support, member.meta(), member.evaluation_steps)
            return member.algorithm.network(params, episode.query.x)

        return (vmap(one)(episodes) * member.served["map"]["log_temperature"].exp()).softmax(-1)

    p = sum(map(probabilities, members)) / 2
    truth = torch.nn.functional.one_hot(y, 2)
    assert_equal(scores["map/brier"], ((p - truth) ** 2).sum(-1).mean(-1))
    assert_equal(scores["map/nll"], -p.gather(-1, y[..., None]).log().mean((1, 2)))


def test_unlike_runs_are_refused_by_name():
    keys = {"dataset.shots": 5, "dataset.meta_batch": 4, "dataset.root": "a", "likelihood._target_": "G", "seed": 0}
    refuse_unlike({"a": keys, "b": keys | {"seed": 1, "dataset.meta_batch": 9, "dataset.root": "b", "model.x": 1}})
    for key, value in {"dataset.shots": 10, "likelihood._target_": "P", "dataset.noise": 0.3}.items():
        message = f"ensemble=true: {key}: expected .*; the members of an ensemble share tasks and likelihood; b differs"
        with pytest.raises(ValueError, match=message):
            refuse_unlike({"a": keys, "b": keys | {key: value}})


def rows(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_sweep_has_an_ensemble_for_each_configuration(sweep):
    """A row beside its members', who keep their digits; the ensembles are compared with each other."""
    result = commands.run("evaluate.py", sweep.parent, "sweep", "ensemble=true", "test_tasks=12")
    assert result.returncode == 0, result.stderr
    assert "of 2" in result.stdout
    assert "llama, ensemble of 2 - maml, ensemble of 2" in result.stdout
    assert "on the sigma or temperature of its members: map " in result.stdout
    found = rows(sweep / "evaluated" / "ensemble-True__test_tasks-12" / "results.csv")
    assert [row["ensemble"] for row in found] == ["", "", "", "", "of 2", "of 2"]
    assert found[-1]["run"] == "ensemble of 2: sweep/maml_0, sweep/maml_1"
    assert found[-1]["seed"] == "0 1"
    assert found[-1]["evaluated_with"] == "ensemble=true test_tasks=12"
    for kind in ("map", "linearized", "sample"):
        mean = sum(float(row[f"test/{kind}/mse"]) for row in found[:2]) / 2
        assert float(found[-2][f"test/{kind}/mse"]) <= mean + 1e-6  # as that of a mean is
        assert float(found[-2][f"test/{kind}/nll_raw"])
    report = (sweep / "evaluated" / "ensemble-True__test_tasks-12" / "report.html").read_text()
    assert "ensemble of 2" in report


def test_named_runs_make_one_ensemble(sweep, tmp_path, capsys):
    out = tmp_path / "out"
    assert comparison.compare([sweep / "maml_0", sweep / "llama_1"], ["ensemble=true", "test_tasks=5"], str(out)) == 0
    assert "maml + llama" in capsys.readouterr().out
    [*_, row] = rows(out / "results.csv")
    assert (row["ensemble"], row["choices.algorithm"]) == ("of 2", "maml + llama")
    assert comparison.compare([sweep / "maml_0"], ["ensemble=false", "test_tasks=5"], str(out)) == 0
    assert len(rows(out / "results.csv")) == 1


REFUSED = {
    ("ensemble=perhaps",): "ensemble: expected true or false, got perhaps",
    ("ensemble=true", "support=a.csv", "query=b.csv"): "ensemble: expected a comparison of runs, got a new task, which",
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_in_one_line(sweep, words):
    result = commands.run("evaluate.py", sweep, "llama_0", *words)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: {REFUSED[words]}"), result.stderr
    assert "Traceback" not in result.stderr
