"""Calibration finds what closed forms and fine grids find, changes only what is served, and stays with the run."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

import meta_exp
from meta_exp.comparison import compare
from meta_exp.comparison.ensemble import Ensemble
from meta_exp.prediction import Prediction
from meta_exp.runs import calibration
from meta_exp.runs.build import build
from meta_exp.runs.calibration import CALIBRATION, Calibration, _minimum, calibrate
from meta_exp.runs.restore import open_run
from meta_exp.runs.test_set import score_tasks, summarize
from meta_exp.training.data import EvaluationBatches, fresh_batches

LEVELS = (50, 80, 90, 95)
TINY = ["trainer=smoke", "logger=none", "model.widths=[8,8]", "validation_tasks=12", "test_tasks=10", "samples=3"]


@pytest.fixture
def calibrated(trained):
    quick = ["trainer.max_steps=60", "trainer.accelerator=cpu"]  # where its digits are compared
    return trained("calibrated", *TINY, *quick, "predictives=[map,sample,linearized]")


def test_sigma_of_the_network_is_its_error(config):
    """sigma^2 of the plain network is the mean squared error of the validation queries after the evaluation's steps."""
    run = build(config(*TINY, "predictives=[map]"))
    run.learner.double()
    batches = [tree_map(torch.Tensor.double, batch) for batch in run.stream.val_dataloader()]
    before = {name: value.clone() for name, value in run.learner.state_dict().items()}
    found = calibrate(run.learner, batches)
    scores = [run.learner.evaluate(batch, 10, ["map"]).each["map/mse"] for batch in batches]
    error = float(torch.cat(scores).mean())
    assert found.values["map"]["sigma_noise"] == pytest.approx(error**0.5, rel=0.02)
    assert found.nll["map"] == pytest.approx((np.log(2 * np.pi * error) + 1) / 2, abs=1e-3)
    assert found.nll["map"] < found.nll_raw["map"]
    assert (found.validation_tasks, found.inner_steps) == (12, 10)
    assert all(torch.equal(before[name], value) for name, value in run.learner.state_dict().items())
    assert not run.learner.served


def test_sigma_and_tau_are_fitted_together(config):
    """No point of a fine grid around them is better by more than the tolerance, and the scores are evaluation's."""
    run = build(config(*TINY))
    batches = list(run.stream.val_dataloader())
    found = calibrate(run.learner, batches)
    values = found.values["linearized"]

    def nll(sigma, tau):
        at = Calibration({"linearized": {"sigma_noise": sigma, "prior_precision": tau}}, {}, {}, 0, 0)
        run.learner.served = at.hyper(run.learner)
        each = [run.learner.evaluate(batch, 10, ["linearized"]).each["linearized/nll"] for batch in batches]
        return float(torch.cat(each).mean())

    sigma, tau = values["sigma_noise"], values["prior_precision"]
    assert nll(sigma, tau) == pytest.approx(found.nll["linearized"], abs=1e-4)
    around = [nll(sigma * s, tau * t) for s in (0.8, 1.0, 1.25) for t in (0.2, 1.0, 5.0)]
    assert found.nll["linearized"] < min(around) + 2e-3
    assert found.nll["linearized"] <= found.nll_raw["linearized"]


def test_classes_have_a_temperature(character_run):
    """Each predictive its own, and tau where there is a posterior; no worse than as trained."""
    found = json.loads((character_run / CALIBRATION).read_text())
    assert set(found["values"]["map"]) == {"temperature"}
    assert found["nll"]["map"] <= found["nll_raw"]["map"]
    run = open_run(character_run, ["curvature=last_layer"])
    assert not run.learner.served, "the posterior is another"
    fitted = calibrate(run.learner, run_batches(run))
    assert set(fitted.values["linearized"]) == {"temperature", "prior_precision"}
    assert all(fitted.nll[kind] <= fitted.nll_raw[kind] for kind in fitted.nll)


def all_right(y, classes=5):
    """What predicts the classes y [T, M], all rightly and all alike sure."""
    truth = torch.nn.functional.one_hot(y, classes).float()
    return Prediction(3.0 * truth[:, None], truth.new_zeros(*y.shape, classes, classes))


def least(points, classes=5):
    """The temperature of ``all_right`` by Laplace's rule: p of the right class is (n + 1 / C) / (n + 1)."""
    p = (points + 1 / classes) / (points + 1)
    return math.log(p / (1 - p) * (classes - 1)) / 3.0


def test_no_error_asks_for_no_endless_temperature(character_run, monkeypatch):
    """The more points without one the surer, alone and together; what is said is the NLL of the points themselves."""
    run = open_run(character_run)
    monkeypatch.setattr(calibration, "_predict", lambda learner, kind, meta, batch: all_right(batch.episodes.query.y))
    for tasks in (5, 40):
        batches = list(EvaluationBatches(run.family, "validation", tasks))
        points = sum(batch.query.y.numel() for batch in batches)
        found = calibrate(run.learner, batches)
        assert found.values["map"]["temperature"] == pytest.approx(least(points), rel=0.03)
        nll = math.log1p(4 * math.exp(-3 * found.values["map"]["temperature"]))
        assert found.nll["map"] == pytest.approx(nll, rel=1e-3)
        assert found.nll_raw["map"] == pytest.approx(math.log1p(4 * math.exp(-3)), rel=1e-5)
        run.learner.served = {}
        together = Ensemble([run.learner, run.learner])
        monkeypatch.setattr(together, "_of_tasks", lambda one, episodes, seed: [all_right(episodes.query.y)] * 2)
        together.fit(batches)
        assert together.factors["map"] == pytest.approx(least(points), rel=0.03)


def run_batches(run):
    return EvaluationBatches(run.family, "validation", 5)


def test_the_result_is_served_and_raw(calibrated):
    """metrics.json holds both; a restored run gives the digits back; the values stand in a file and in the result."""
    metrics = json.loads((calibrated / "metrics.json").read_text())
    found = json.loads((calibrated / CALIBRATION).read_text())
    for kind in ("map", "sample", "linearized"):
        assert metrics[f"test/{kind}/nll"] != metrics[f"test/{kind}/nll_raw"]
        assert metrics[f"calibration/{kind}/sigma_noise"] == found["values"][kind]["sigma_noise"]
        assert found["nll"][kind] <= found["nll_raw"][kind]
    assert "calibration/map/prior_precision" not in metrics
    run = open_run(calibrated)
    again = summarize(score_tasks(run.learner, run.family, 10, torch.device("cpu")))
    assert {name: metrics[name] for name in again} == pytest.approx(again, rel=1e-6)
    plain = open_run(calibrated, ["calibrate=null"])
    raw = summarize(score_tasks(plain.learner, plain.family, 10, torch.device("cpu")))
    assert raw["test/map/nll"] == pytest.approx(metrics["test/map/nll_raw"], rel=1e-6)
    assert "test/map/nll_raw" not in raw


def test_production_serves_it(calibrated):
    """The variance of the plain network's prediction is the fitted sigma's square."""
    values = json.loads((calibrated / CALIBRATION).read_text())["values"]
    x = np.linspace(-4, 4, 5)[:, None]
    task = meta_exp.load(calibrated).adapt(x, np.sin(x[:, 0]))
    np.testing.assert_allclose(task.predict(x, kind="map").variance, values["map"]["sigma_noise"] ** 2, rtol=1e-5)
    assert (task.predict(x).variance > values["linearized"]["sigma_noise"] ** 2).all()


def evaluated(folder, *overrides):
    """Score a run as a comparison does."""
    opened, left_out = compare._open([folder], overrides)
    results = compare._score([folder], opened, overrides, left_out)
    assert not left_out
    return results


def test_a_comparison_fits_another_posterior_anew(calibrated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = evaluated(calibrated, "curvature=diagonal")
    assert set(results[0].served["linearized"]) == {"log_sigma_noise", "log_prior_precision"}
    assert "test/linearized/nll_raw" in results[0].summary


def test_none_is_wanted(trained):
    folder = trained("uncalibrated", *TINY, "calibrate=null")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert not (folder / CALIBRATION).exists()
    fitted = ("_raw", "calibration/", "conformal")
    assert not [name for name in metrics if any(words in name for words in fitted)]


def held(run, batches, kind):
    """Coverage of conformal intervals or sets at each level over the tasks of ``batches``, and the number of tasks."""
    steps = run.learner.evaluation_steps
    scored = [run.learner.evaluate(batch, steps, [kind], k).each for k, batch in enumerate(batches)]
    found = [torch.cat([each[f"{kind}/conformal_coverage_{q}"] for each in scored]) for q in LEVELS]
    return [float(value.mean()) for value in found], len(found[0])


def in_tens(batches):
    """As evaluation has its tasks: draws are a function of the place of a batch of ten."""
    return [
        tree_map(lambda v, s=s: v[s : s + 10], batch) for batch in batches for s in range(0, len(batch.query.y), 10)
    ]


def test_thresholds_are_those_of_what_is_served(calibrated):
    """On the very tasks that set them, evaluation covers the share that their rank says, by each predictive."""
    run = open_run(calibrated)
    assert set(run.learner.conformal) == {"map", "sample", "linearized"}
    batches = in_tens(fresh_batches(run.family, 20))
    for kind, record in run.learner.conformal.items():
        assert (record.tasks, record.points) == (20, 10)
        covered, tasks = held(run, batches, kind)
        assert tasks == 20
        assert covered == pytest.approx([-(-q * 21 * 10 // 100) / 200 for q in LEVELS])


def test_thresholds_of_classes(character_run):
    run = open_run(character_run)
    covered, _ = held(run, in_tens(fresh_batches(run.family, 20)), "map")
    assert covered == pytest.approx([-(-q * 21 * 6 // 100) / 120 for q in LEVELS], abs=0.03)  # sure points tie
    metrics = json.loads((character_run / "metrics.json").read_text())
    assert 0 < metrics["test/map/conformal_size_90"] <= 3
    assert "test/map/conformal_width_90" not in metrics


def test_fresh_tasks_chose_nothing(calibrated):
    """They are of the validation split, the same for each run, and none of those that chose the checkpoint."""
    family = open_run(calibrated).family
    fresh, again, more = ([*fresh_batches(family, tasks)] for tasks in (120, 120, 200))
    assert [len(batch.query.y) for batch in fresh] == [100, 20]
    assert all(torch.equal(a.query.x, b.query.x) for a, b in zip(fresh, again, strict=True))
    assert torch.equal(fresh[1].query.x, more[1].query.x[:20])
    chose = torch.cat([batch.support.x for batch in EvaluationBatches(family, "validation", 200)])
    assert not torch.isin(fresh[0].support.x, chose).any()


def test_conformal_coverage_is_nominal(calibrated):
    """600 test tasks by a thousand fresh ones, within 0.02 at each level; the predictive's own intervals are not."""
    run = open_run(calibrated)
    run.learner.predictives = ["map", "linearized"]
    calibrate(run.learner, run_batches(run), fresh_batches(run.family, 1000)).serve(run.learner)
    summary = summarize(score_tasks(run.learner, run.family, 600, torch.device("cpu")))
    for kind in ("map", "linearized"):
        covered = [summary[f"test/{kind}/conformal_coverage_{q}"] for q in LEVELS]
        assert covered == pytest.approx([q / 100 for q in LEVELS], abs=0.02)
        widths = [summary[f"test/{kind}/conformal_width_{q}"] for q in LEVELS]
        assert widths == sorted(widths)
        assert abs(summary[f"test/{kind}/coverage_50"] - 0.5) > 0.05


def test_an_older_run_gets_its_own(trained, tmp_path):
    """calibrate=true writes it beside the checkpoint, for what follows; not under settings that are not the run's."""
    folder = shutil.copytree(trained("uncalibrated", *TINY, "calibrate=null"), tmp_path / "old")
    cfg = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text("".join(line for line in cfg.splitlines(True) if "conformal_tasks" not in line))
    x = np.linspace(-4, 4, 5)[:, None]

    def ends():
        return meta_exp.load(folder).adapt(x, np.sin(x[:, 0])).predict(x).interval(0.8, method="conformal")

    with pytest.raises(ValueError, match=r"method=conformal: expected .*, got none; .*evaluate\.py RUN calibrate=true"):
        ends()
    evaluated(folder, "calibrate=true", "conformal_tasks=30", "dataset.shots=5")
    assert not (folder / CALIBRATION).exists()
    results = evaluated(folder, "calibrate=true", "conformal_tasks=30")
    low, high = ends()
    assert (low < high).all()
    again = evaluated(folder)
    assert again[0].summary == pytest.approx(results[0].summary, nan_ok=True)
    assert "test/linearized/conformal_width_90" in again[0].summary


WHOLE = {"values": {}, "nll": {}, "nll_raw": {}, "validation_tasks": 1, "inner_steps": 1}
DAMAGED = [
    json.dumps(WHOLE | damage)
    for damage in (
        {"values": 3},
        {"values": {"map": {"sigma_noise": -1}}},
        {"values": {"map": {"colour": 1}}},
        {"conformal": 3},
        {"conformal": {"map": {"tasks": 3}}},
        {"conformal": {"map": {"tasks": 3, "points": 2, "thresholds": [2, 1]}}},
        {"conformal": {"map": {"tasks": 3, "points": 2, "thresholds": ["a"]}}},
    )
]


@pytest.mark.parametrize("text", ["{", "[]", *DAMAGED])
def test_a_damaged_file_is_refused(calibrated, tmp_path, text):
    copy = shutil.copytree(calibrated, tmp_path / "copy")
    (copy / CALIBRATION).write_text(text)
    with pytest.raises(ValueError, match=r"calibration\.json: expected .*, got"):
        open_run(copy)


def test_predictions_that_diverged_are_kept_as_infinitely_bad(tmp_path):
    """As rates that were learned for one step give after ten: the run is finished, and its folder is read again."""
    found = Calibration({"map": {"sigma_noise": 2.0}}, {"map": math.inf}, {"map": math.inf}, 100, 10)
    found.write(tmp_path)
    assert Calibration.read(tmp_path) == found
    assert "inf" in found.describe()
    assert _minimum(lambda point: math.nan, ["sigma_noise"], [0.5]) == ([0.5], math.inf)
