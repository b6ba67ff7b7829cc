"""Calibration finds what closed forms and fine grids find, changes only what is served, and stays with the run."""

import json

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

import meta_exp
from meta_exp.comparison import compare
from meta_exp.runs.build import build
from meta_exp.runs.calibration import CALIBRATION, Calibration, calibrate
from meta_exp.runs.restore import open_run
from meta_exp.runs.test_set import score_tasks, summarize

TINY = ["trainer=smoke", "logger=none", "model.widths=[8,8]", "validation_tasks=12", "test_tasks=10", "samples=3"]


@pytest.fixture
def calibrated(trained):
    return trained("calibrated", *TINY, "trainer.max_steps=60", "predictives=[map,sample,linearized]")


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


def run_batches(run):
    from meta_exp.training.data import EvaluationBatches

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


def test_a_comparison_fits_another_posterior_anew(calibrated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results, left_out = compare._evaluate([calibrated], ["curvature=diagonal"])
    assert not left_out
    assert set(results[0].served["linearized"]) == {"log_sigma_noise", "log_prior_precision"}
    assert "test/linearized/nll_raw" in results[0].summary


def test_none_is_wanted(trained):
    folder = trained("uncalibrated", *TINY, "calibrate=null")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert not (folder / CALIBRATION).exists()
    assert not [name for name in metrics if name.endswith("_raw") or name.startswith("calibration/")]
    results, _ = compare._evaluate([folder], ["calibrate=true"])
    assert results[0].served


@pytest.mark.parametrize("text", ["{", "[]", '{"values": {"map": {"sigma_noise": -1}}}', '{"values": 3}'])
def test_a_damaged_file_is_refused(calibrated, tmp_path, text):
    import shutil

    copy = shutil.copytree(calibrated, tmp_path / "copy")
    (copy / CALIBRATION).write_text(text)
    with pytest.raises(ValueError, match=r"calibration\.json: expected .*, got"):
        open_run(copy)
