"""What a sweep varies, told from what follows; families that differ in one number; axes on which values stand apart."""

from dataclasses import replace

import pytest
from made_results import regression

from meta_exp.comparison.charts import charts
from meta_exp.comparison.results import group
from meta_exp.comparison.swept import axis, families, swept_keys


def configured(*configs):
    results = []
    for number, keys in enumerate(configs):
        result = regression()
        results.append(replace(result, keys={"seed": 0, "choices.algorithm": "llama", **keys}, command=f"run {number}"))
    return group(results)


def test_a_grid_has_a_chart_for_each_number_it_varies():
    grid = [{"dataset.shots": n, "algorithm.eta": eta} for n in (1, 5) for eta in (0.0, 0.1, 0.2)]
    configurations = configured(*grid)
    assert swept_keys(configurations) == ["algorithm.eta", "dataset.shots"]
    by_shots = list(families(configurations, "dataset.shots", swept_keys(configurations)))
    assert [family.label for family in by_shots] == [{"algorithm.eta": eta} for eta in ("0.0", "0.1", "0.2")]
    assert all([value for value, _ in family.members] == [1, 5] and family.joined for family in by_shots)
    drawn = {chart.name for chart in charts(configurations)}
    assert {"sweep_eta_mse", "sweep_eta_nll", "sweep_shots_mse", "sweep_shots_nll"} <= drawn


def test_shots_are_swept_for_each_algorithm():
    configurations = configured(
        *({"choices.algorithm": a, "dataset.shots": n, "x": a == "maml"} for a in ("maml", "llama") for n in (20, 2, 5))
    )
    [chart] = [chart for chart in charts(configurations) if chart.name == "sweep_shots_nll"]
    assert [(curve.name, curve.x) for curve in chart.curves] == [("llama, map", [2, 5, 20]), ("maml, map", [2, 5, 20])]
    assert chart.x_axis.log


@pytest.mark.parametrize("named", ["algorithm.inner_steps", "evaluation_steps"])
def test_of_numbers_that_move_together_the_one_in_the_command_counts(named):
    """Also where what follows has fewer values: it would cut the curve into pieces."""
    pairs = [(1, 10), (5, 10), (20, 20)] if named == "algorithm.inner_steps" else [(1, 2), (5, 10), (20, 40)]
    configurations = configured(*({"algorithm.inner_steps": i, "evaluation_steps": e} for i, e in pairs))
    for c in configurations:
        object.__setattr__(c.runs[0], "command", f"train.py {named}=1")
    assert swept_keys(configurations) == [named]
    [family] = families(configurations, named, [named])
    assert len(family.members) == 3


def test_a_choice_does_not_sweep_the_numbers_it_brings():
    assert swept_keys(configured({"choices.algorithm": "a", "lr": 1}, {"choices.algorithm": "b", "lr": 2})) == []
    assert swept_keys(configured({"first_order": True}, {"first_order": False})) == []


def test_trials_of_a_search_stand_for_themselves():
    trials = [(0.1, 3.0), (0.01, 1.0), (0.3, 2.0), (0.02, 4.0)]
    configurations = configured(*({"optimizer.lr": lr, "curvature.prior_precision": tau} for lr, tau in trials))
    assert swept_keys(configurations) == ["curvature.prior_precision", "optimizer.lr"]
    for chart in charts(configurations):
        if chart.name.startswith("sweep"):
            [curve] = chart.curves
            assert not curve.joined
            assert curve.x == sorted(curve.x)
    assert {"sweep_tau_nll", "sweep_lr_nll"} <= {chart.name for chart in charts(configurations)}


def test_keys_of_ones_own_name_files_safely():
    configurations = configured({"a../../b": 1}, {"a../../b": 2})
    assert "sweep_b_nll" in {chart.name for chart in charts(configurations)}


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([10, 100, 1000], True),
        ([2, 3, 5, 10, 20], True),
        ([1, 2, 4, 8], True),
        ([1, 2, 3, 4], False),
        ([0.1, 0.2, 0.3], False),
        ([5, 20], False),
        ([1, 10], True),
        ([-1, 1, 10, 100], False),
        ([0.0, 0.1], False),
    ],
)
def test_axis_is_logarithmic_where_ratios_are_more_even(values, log):
    assert axis(values).log is log


def test_zero_is_shown_on_a_logarithmic_axis_a_step_aside():
    found = axis([0.1, 0.0, 0.01, 0.001])
    assert found.place(0.0) == pytest.approx(0.0001)
    assert found.place(0.01) == 0.01
    assert [words for _, words in found.ticks] == ["0", "0.001", "0.01", "0.1"]
    [curve] = next(
        c for c in charts(configured(*({"e": v} for v in (0.0, 0.01, 0.1, 1.0)))) if "sweep" in c.name
    ).curves
    assert curve.x == pytest.approx([0.001, 0.01, 0.1, 1])
