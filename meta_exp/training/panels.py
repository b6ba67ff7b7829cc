"""What runs are compared by on a dashboard, ``across_runs/``: one name for what each run serves, however it is called.

MAML serves ``map`` and LLAMA ``linearized``, whose panels are others: side by side stand

    across_runs/validation_nll, validation_coverage_95       in training, as trained
    across_runs/nll, regret, coverage_95                     on the test tasks at the end, as served: calibrated

and their accuracy or MSE. The section is the first in order of names.
"""

from collections.abc import Mapping

from meta_exp.prediction import KINDS

ACROSS = "across_runs/"
SCORES = ("nll", "regret", "coverage_95", "accuracy", "mse")
PARTS = {"validation": "validation_", "test": ""}


def panels(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores of the predictive that is served, of those that ``scores`` of one moment hold."""
    found = {}
    for part, prefix in PARTS.items():
        kinds = [kind for kind in KINDS if f"{part}/{kind}/nll" in scores]
        for score in SCORES if kinds else ():
            if (name := f"{part}/{kinds[-1]}/{score}") in scores:
                found[f"{ACROSS}{prefix}{score}"] = scores[name]
    return found
