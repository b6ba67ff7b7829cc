"""Grouping, intervals over seeds or tasks, and differences paired by seed and task, against numpy and scipy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made_results import regression
from scipy import stats

from meta_exp.comparison.compare import table
from meta_exp.comparison.results import Result, differences, differing_keys, group
from meta_exp.config.keys import flatten
from meta_exp.scoring.task import Scores

TASKS = 50


def result(seed, shift=0.0, algorithm="maml", predictives=("map",), folder="run", **keys):
    """A made-up run: every run meets the same hard and easy tasks."""
    generator = torch.Generator().manual_seed(seed)
    hardness = torch.randn(TASKS, generator=torch.Generator().manual_seed(99)).double()
    each = {"loss": hardness}
    for kind in predictives:
        noise = 0.1 * torch.randn(TASKS, generator=generator).double()
        each |= {f"{kind}/mse": hardness + noise + shift, f"{kind}/nll": hardness + noise}
    base = {"seed": seed, "choices.algorithm": algorithm, "optimizer.lr": 0.1, "run_dir": f"{folder}{seed}"}
    return Result(Path(folder), base | keys, Scores(each, {}), "mse", "", {}, {})


def llama(seed, shift=0.0, eta=0.5, **options):
    more = {"algorithm.eta": eta, "curvature.prior_precision": 10.0, "choices.curvature": "ggn"}
    return result(seed, shift, "llama", ("map", "linearized"), **more | options)


def test_runs_that_differ_in_the_seed_are_one_configuration():
    runs = [result(0), result(1), llama(0), llama(1), llama(0, eta=0.1), result(1, folder="again")]
    found = group(runs)
    assert [c.name for c in found] == ["llama, eta 0.1", "llama, eta 0.5", "maml"]
    assert [[run.seed for run in c.runs] for c in found] == [[0], [0, 1], [0, 1]]
    assert found[2].runs[1].folder == Path("again")  # of two runs with one seed the later counts


def test_a_label_holds_no_key_that_others_imply():
    (first, _) = group([result(0), llama(0)])
    assert dict(first.label) == {"choices.algorithm": "llama"}
    [alone] = group([result(0), result(1)])
    assert alone.label == {}
    assert alone.name == "maml"  # a picture of it says at least this


def test_interval_over_seeds_is_students():
    (found,) = group([result(seed, shift=seed) for seed in (0, 1, 2)])
    means = [float(run.scores.each["map/mse"].mean()) for run in found.runs]
    low, high = stats.t.interval(0.95, 2, np.mean(means), stats.sem(means))
    estimate = found.estimate("map/mse")
    assert estimate.mean == pytest.approx(np.mean(means))
    assert estimate.half == pytest.approx((high - low) / 2)
    assert estimate.over == "3 seeds"


def test_interval_over_tasks_where_there_is_one_seed():
    (found,) = group([result(0)])
    values = found.runs[0].scores.each["map/mse"].numpy()
    estimate = found.estimate("map/mse")
    low, high = stats.t.interval(0.95, TASKS - 1, values.mean(), stats.sem(values))
    assert estimate.half == pytest.approx((high - low) / 2)
    assert estimate.over == "50 tasks"
    assert found.estimate("map/brier") is None


def test_an_infinite_score_of_one_seed_leaves_no_interval():
    (found,) = group([result(0), result(1, shift=float("inf")), result(2)])
    estimate = found.estimate("map/mse")  # a warning would be an error here
    assert estimate.mean == float("inf")
    assert np.isnan(estimate.half)


def test_difference_is_paired_by_task():
    """The hardness of the tasks, common to both, cancels: a tenth of it is left in the interval."""
    found = group([result(0), llama(0, shift=-0.2)])
    to_map, to_linearized = differences(found)
    a, b = (c.runs[0].scores.each["map/mse"].numpy() for c in found)
    assert to_map.scores["mse"].mean == pytest.approx((a - b).mean())
    assert to_map.scores["mse"].half == pytest.approx(stats.t(TASKS - 1).ppf(0.975) * stats.sem(a - b))
    assert to_map.scores["mse"].half < 0.2 * found[0].estimate("map/mse").half
    assert to_map.predictives == ("map", "map")
    assert to_linearized.predictives == ("linearized", "map")  # MAML has no posterior: its plain network
    assert to_map.scores["mse"].over == "50 tasks"


def test_difference_is_paired_by_seed():
    """Seeds move both alike; unpaired, the interval would be ten times as wide."""
    runs = [result(seed, shift=5 * seed) for seed in range(3)]
    runs += [llama(seed, shift=5 * seed - 0.2) for seed in (0, 1, 2, 7)]  # seed 7 has no partner
    pair = next(differences(group(runs)))
    assert pair.scores["mse"].mean == pytest.approx(-0.2, abs=0.05)
    assert pair.scores["mse"].half < 0.2
    assert pair.scores["mse"].over == "3 seeds"


def test_a_score_that_no_task_has_is_none():
    """Where a split has no more classes than a task, nothing is foreign; any other NaN is shown as it is."""

    def scored(run, loss=0.0):
        run.scores.each["map/auroc"] = torch.full((TASKS,), float("nan"))
        run.scores.each["map/mse"] += loss
        return run

    configurations = group([scored(run, float("nan")) for seed in (0, 1) for run in (result(seed), llama(seed))])
    for configuration in configurations:
        assert configuration.estimate("map/auroc") is None
        assert str(configuration.estimate("map/mse")) == "nan"
    assert all("auroc" not in difference.scores for difference in differences(configurations))


def test_only_runs_that_differ_in_algorithm_and_curvature_are_compared():
    assert not list(differences(group([result(0), llama(0, **{"optimizer.lr": 0.2})])))
    assert not list(differences(group([result(0), llama(1)])))
    assert not list(differences(group([result(0), result(0, **{"optimizer.lr": 0.2})])))


def test_pooled_scores_have_a_difference_over_seeds_only():
    def with_ece(run, wrong):
        run.scores.pooled["map/reliability"] = torch.tensor([[0.0, 10.0], [0.0, 8.0], [0.0, 8.0 - wrong]])
        return run

    runs = [with_ece(result(0), 0.0), with_ece(llama(0), 1.0)]
    (ece,) = [d.scores["ece"] for d in differences(group(runs)) if d.predictives[0] == "map"]
    assert ece.mean == pytest.approx(0.1)
    assert ece.half != ece.half
    assert str(ece) == "0.1"
    assert ece.over == ""


def test_the_exact_predictor_has_a_row_and_knows_no_seed():
    """Its interval is over tasks, that of the regret over seeds; a run of an older version has neither."""
    (found,) = group([regression(0, best=True), regression(1, best=True)])
    assert found.rows == ["map", "bayes"]
    assert found.predictives == ["map"]
    assert found.estimate("bayes/nll").over == "20 tasks"
    assert found.estimate("bayes/nll").half > 0
    assert found.estimate("map/regret").over == "2 seeds"
    (plain,) = group([regression(0)])
    assert plain.rows == ["map"]
    assert plain.estimate("map/regret") is None
    (mixed,) = group([regression(0, best=True), regression(1)])
    assert mixed.estimate("map/regret") is None
    shown = table([found]).columns
    assert [column.header for column in shown][:4] == ["predictive", "MSE", "NLL per point", "regret"]
    assert next(iter(shown[3].cells)).count("±") == 1  # none of the exact predictor itself


def test_differing_keys_leave_out_what_is_not_a_setting():
    configs = [flatten({"seed": 0, "run_dir": "a", "model": {"widths": [4, 4]}}), flatten({"seed": 1, "run_dir": "b"})]
    assert differing_keys(configs) == ["seed", "model.widths"]
