"""Results of runs that never were, for charts and reports."""

from pathlib import Path

import torch

from meta_exp.comparison.results import Result
from meta_exp.likelihoods.predictive import COVERAGE_LEVELS
from meta_exp.scoring.task import Scores


def regression(seed=0, eta=0.1, best=False):
    """A run; of a family whose best possible predictor is known where asked."""
    values = torch.linspace(0, 1, 20).double() + seed
    names = ["map/nll", "map/mse", "map/mse_step_0", "map/mse_step_1", *(f"map/coverage_{q}" for q in COVERAGE_LEVELS)]
    names += [f"map/conformal_coverage_{q}" for q in COVERAGE_LEVELS] if best else []
    each, pooled = {"loss": values} | dict.fromkeys(names, values), {"map/pit": torch.arange(20.0)}
    if best:
        known = torch.linspace(0, 0.1, 20).double()
        coverage = [f"bayes/coverage_{q}" for q in COVERAGE_LEVELS]
        each |= {"map/regret": values - known} | dict.fromkeys(["bayes/nll", "bayes/mse", *coverage], known)
        pooled["bayes/pit"] = torch.ones(20)
    scores = Scores(each, pooled)
    keys = {"seed": seed, "choices.algorithm": "llama", "algorithm.eta": eta}
    curve = {"step": [10.0, 20.0], "validation/loss": [9.0, 9.0], "validation/map/nll": [3.0 + seed, 2.0 + seed]}
    return Result(Path("run"), keys, scores, "mse", "", curve, {})


def classification():
    pooled = {
        "map/reliability": torch.tensor([[0.0, 10.0, 30.0], [0.0, 5.0, 27.0], [0.0, 4.0, 30.0]]),
        "map/entropy": torch.tensor([[6.0, 2.0], [1.0, 3.0]]),
    }
    values = torch.rand(20, generator=torch.Generator().manual_seed(0)).double()
    scores = Scores(dict.fromkeys(["loss", "map/nll", "map/accuracy", "map/accuracy_step_0"], values), pooled)
    return Result(Path("run"), {"seed": 0, "choices.algorithm": "maml"}, scores, "accuracy", "", {}, {})
