"""Panels to compare runs by: one name for what each serves, whatever it is called."""

from meta_exp.training.panels import panels


def test_the_served_predictive_has_one_name():
    maml = {"validation/loss": 1.0, "validation/map/nll": 2.0, "validation/map/mse": 3.0}
    llama = {**maml, "validation/linearized/nll": 1.5, "validation/linearized/coverage_95": 0.9}
    assert panels(maml) == {"compare/nll_validation": 2.0, "compare/mse_validation": 3.0}
    assert panels(llama) == {"compare/nll_validation": 1.5, "compare/coverage_95_validation": 0.9}
    ended = {"test/map/nll": 1.0, "test/linearized/nll": 0.5, "test/linearized/regret": 0.1, "test/bayes/nll": 0.4}
    assert panels(ended) == {"compare/nll": 0.5, "compare/regret": 0.1}
    assert panels({"train/loss": 1.0}) == {}
