"""What runs are compared by on a dashboard, ``compare/``: one name for what each run serves, however it is called.

MAML serves ``map`` and LLAMA ``linearized``, whose panels are others: side by side stand

    compare/nll_validation, coverage_95_validation       in training, as trained
    compare/nll, regret, coverage_95                     on the test tasks at the end, as served: calibrated

and their accuracy or MSE. The section is the first in order of names, and each name says at once what it is of: a
narrow terminal cuts it.
"""

from collections.abc import Container, Mapping

from meta_exp.prediction import KINDS

COMPARE = "compare/"
SCORES = ("nll", "regret", "coverage_95", "accuracy", "mse")
PARTS = {"validation": "_validation", "test": ""}


def panels(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores of the predictive that is served, of those that ``scores`` of one moment hold."""
    found = {}
    for part, suffix in PARTS.items():
        kind = served(scores, part)
        for score in SCORES if kind else ():
            if (name := f"{part}/{kind}/{score}") in scores:
                found[f"{COMPARE}{score}{suffix}"] = scores[name]
    return found


def served(scores: Container[str], part: str) -> str | None:
    """Return the predictive that is served, of those whose NLL is among the ``scores`` of ``part``."""
    return next((kind for kind in reversed(KINDS) if f"{part}/{kind}/nll" in scores), None)
