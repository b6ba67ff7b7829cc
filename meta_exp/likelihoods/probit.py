r"""Classification whose linearised predictive has a closed form, with a temperature.

    p(y | x) = softmax_y( T E[f_c] / sqrt(1 + pi / 8 Var[f_c]) )

is the mean-field probit approximation (MacKay's for two classes) of the average of softmax(T f) over Gaussian logits f.
The temperature T, learned or fitted after training, makes up for what the approximation of the posterior leaves out:
one example a class leaves the mode unsure of everything. -log p(y | f) itself, its curvature and the inner loss are
those of ``categorical``: the temperature belongs to the prediction alone.
"""

from dataclasses import dataclass, replace
from math import pi
from typing import Self

from torch import Tensor

from meta_exp.config.checks import require
from meta_exp.hyper import Hyper, Learned, in_log_space
from meta_exp.likelihoods.categorical import Categorical, CategoricalPredictive


@dataclass(frozen=True)
class Probit(Categorical):
    """``temperature`` T > 0 multiplies logits, fixed or ``learned`` (in log space) with theta."""

    temperature: float | Tensor = 1.0
    learned: bool = True

    closed_form = True

    def __post_init__(self) -> None:
        """Refuse a temperature that is not positive."""
        if not isinstance(self.temperature, Tensor):
            require(self.temperature > 0, "likelihood.temperature", "a number > 0", self.temperature)

    def hyperparameters(self) -> dict[str, Learned]:
        """Return what is learned beside theta: the temperature, in log space."""
        return in_log_space("temperature", self.temperature) if self.learned else {}

    def at(self, hyper: Hyper) -> Self:
        """Return this likelihood with the temperature that ``hyper`` holds."""
        return replace(self, temperature=hyper["log_temperature"].exp()) if "log_temperature" in hyper else self

    def predictive(self, outputs: Tensor, covariance: Tensor) -> CategoricalPredictive:
        """Return the average over draws of the class probabilities above."""
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        return CategoricalPredictive(self.temperature * outputs / (1 + pi / 8 * variance.clamp_min(0)).sqrt())
