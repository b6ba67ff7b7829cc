"""Charts hold the numbers of the results: bins, shares, bands, ranges over seeds, and sweeps in order."""

import matplotlib.style
import pytest
from made_results import classification, regression

from meta_exp.comparison import plots
from meta_exp.comparison.charts import Chart, Curve, charts
from meta_exp.comparison.results import group


def found(*results):
    return {chart.name: chart for chart in charts(group(results))}


def test_reliability_has_the_bins_that_hold_points_and_all_counts():
    chart = found(classification())["reliability_map"]
    (curve,), (bars,) = chart.curves, chart.bars
    assert curve.x == pytest.approx([0.5, 0.9])
    assert curve.y == pytest.approx([0.4, 1.0])
    assert bars.y == [0, 10, 30]
    assert "ECE 0.100" in curve.name


def test_entropy_is_in_shares_of_own_and_of_foreign_points():
    own, foreign = found(classification())["entropy_map"].curves
    assert (own.y, foreign.y) == ([0.75, 0.25], [0.25, 0.75])
    assert foreign.dashed
    assert not own.dashed


def test_band_is_the_interval_and_for_learning_curves_the_range():
    drawn = found(regression(0), regression(1))
    (steps,) = drawn["steps_mse"].curves
    (configuration,) = group([regression(0), regression(1)])
    estimate = configuration.estimate("map/mse_step_0")
    assert steps.x == [0, 1]
    assert steps.high[0] - steps.low[0] == pytest.approx(2 * estimate.half)
    (learning,) = drawn["learning"].curves
    assert (learning.y, learning.low, learning.high) == ([3.5, 2.5], [3.0, 2.0], [4.0, 3.0])
    assert drawn["coverage_map"].bars[0].y == pytest.approx([i / 190 for i in range(20)])


def test_learning_is_that_of_what_is_served():
    """LLAMA's loss, of the network alone, and MAML's are not of one kind; their NLLs are."""
    llama = regression(0, 0.5)
    llama.curve["validation/linearized/nll"] = [1.5, 0.5]
    (maml, other) = found(regression(0, 0.1), llama)["learning"].curves
    assert (maml.y, other.y) == ([3.0, 2.0], [1.5, 0.5])
    unknown = regression(0)
    unknown.curve.clear()
    assert "learning" not in found(unknown)


def test_an_ensemble_has_the_colour_of_its_members_and_other_lines():
    runs = [regression(0, eta) for eta in (0.1, 0.5)]
    together = [regression(0, eta) for eta in (0.1, 0.5)]
    for run in together:
        run.keys["ensemble"] = "of 2"
    drawn = found(runs[0], together[0], runs[1], together[1])
    for chart in (drawn["steps_mse"], drawn["coverage_map"], drawn["learning"]):
        assert [(curve.group, curve.dashed) for curve in chart.curves] == [(0, False), (0, True), (1, False), (1, True)]
    assert [bars.group for bars in drawn["coverage_map"].bars] == [0, 0, 1, 1]
    lines = plots.draw_chart(drawn["steps_mse"]).axes[0].get_lines()
    looks = [(line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in lines]
    assert looks[0][:2] == looks[1][:2]
    assert looks[0][2] != looks[1][2]
    assert len({*looks}) == 4


def test_sweep_is_in_order_and_logarithmic_where_it_can_be():
    drawn = found(*(regression(0, eta) for eta in (1.0, 0.01, 0.1)))
    assert drawn["sweep_eta_nll"].curves[0].x == [0.01, 0.1, 1.0]
    assert drawn["sweep_eta_mse"].x_axis.log
    assert not found(regression(0, 0.0), regression(0, 0.1))["sweep_eta_mse"].x_axis.log
    assert not [name for name in found(regression()) if name.startswith("sweep")]


def test_the_best_possible_is_a_line_of_its_own():
    """Below the steps, and with its coverage, once for all that were tested on its tasks; regret is swept over."""
    drawn = found(*(regression(0, eta, best=True) for eta in (0.1, 0.5)))
    curves = drawn["steps_mse"].curves
    assert [(curve.name, curve.dashed) for curve in curves[1:]] == [("eta 0.5", False), ("Bayes-optimal", True)]
    assert [curve.name for curve in drawn["coverage_bayes"].curves] == ["Bayes-optimal"]
    assert curves[2].y == pytest.approx([0.05, 0.05])
    assert curves[2].x == [0, 1]
    without_steps = regression(0, 0.1, best=True)
    del without_steps.scores.each["map/mse_step_1"]
    curves = found(without_steps, regression(0, 0.5, best=True))["steps_mse"].curves
    assert [curve.x for curve in curves] == [[0], [0, 1], [0, 1]], "beside one that takes no steps too"
    assert "steps_mse" not in found(without_steps), "by itself it has nothing to show by steps"
    assert drawn["coverage_bayes"].bars[0].y == pytest.approx([0.05] * 20)
    assert drawn["sweep_eta_regret"].curves[0].y == pytest.approx([0.45, 0.45])
    assert drawn["conformal_map"].curves[0].x == [0.5, 0.8, 0.9, 0.95]
    noisy = [regression(0, eta, best=True) for eta in (0.1, 0.5) for _ in range(2)]
    for run, noise in zip(noisy, (0.1, 0.3) * 2, strict=True):
        run.keys["dataset.noise"] = noise
        run.scores.each["bayes/nll"] = run.scores.each["bayes/nll"] + noise
    names = [curve.name for curve in found(*noisy)["steps_mse"].curves if curve.dashed]
    assert names == ["noise 0.1: Bayes-optimal", "noise 0.3: Bayes-optimal"]
    plain = found(*(regression(0, eta) for eta in (0.1, 0.5)))
    assert not [name for name in plain if "bayes" in name or "regret" in name or "conformal" in name]


def test_figures_say_what_their_lines_and_bars_are():
    """The diagonal in the legend; what the bars stand over below them, and how high they are where calibrated."""
    drawn = found(classification()) | found(regression(0), regression(1))
    for name, words in (("reliability_map", "accuracy = confidence"), ("coverage_map", "observed = nominal")):
        figure = plots.draw_chart(drawn[name])
        assert any(words in text.get_text() for text in figure.legends[0].get_texts())
        above, below = figure.axes
        assert above.get_xlabel() == drawn[name].x_label
        assert below.get_xlabel() == drawn[name].bars_x_label
        assert above.get_xlim() == below.get_xlim()
    assert "F(y)" in drawn["coverage_map"].bars_x_label
    assert drawn["coverage_map"].level == pytest.approx(1 / 20)


def test_steps_are_whole_numbers_and_swept_values_are_ticks():
    drawn = found(*(regression(0, eta) for eta in (1.0, 0.0, 0.01, 0.1)))
    for name in ("steps_mse", "learning"):
        figure = plots.draw_chart(drawn[name])
        figure.canvas.draw()
        assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())
    figure = plots.draw_chart(drawn["sweep_eta_mse"])
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0", "0.01", "0.1", "1"]


def test_a_chart_of_many_long_names_is_as_high_as_its_legend_asks():
    """Which is in one column where two do not fit; no name is cut, and nothing lies on the curves."""
    names = [f"llama_predictive, inner_lr {i}, widths [128, 128, 128, {i}]" for i in range(24)]
    names.append("a name " * 40)
    curves = [Curve(name, [0.0, 1.0], [0.0, float(i)], group=i) for i, name in enumerate(names)]
    with matplotlib.style.context(plots.STYLE):
        figure = plots.draw_chart(Chart("many", "many curves", "x", "y", curves))
    figure.draw_without_rendering()
    page, (legend,), (ax,) = figure.bbox, figure.legends, figure.axes
    box = legend.get_window_extent()
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert page.y0 <= box.y0 < box.y1 <= ax.get_window_extent().y0
    assert ax.get_window_extent().height > figure.dpi
    assert [text.get_text().replace("\n", " ") for text in legend.get_texts()] == [name.strip() for name in names]


def test_charts_are_drawn_with_a_legend_and_marks_that_need_no_colour(tmp_path):
    drawn = found(classification(), regression(0, 0.1), regression(0, 0.5), regression(1, 0.5))
    files = plots.draw_charts(list(drawn.values()), tmp_path)
    assert [file.name for file in files] == [f"{name}.png" for name in drawn]
    assert list(files.values()) == list(drawn.values())
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")}
    assert all(file.stat().st_size > 4000 for file in tmp_path.iterdir())
    lines = plots.draw_chart(drawn["steps_mse"]).axes[0].get_lines()
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 2
