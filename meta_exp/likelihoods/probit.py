r"""Classification whose linearised predictive has a closed form, with a temperature.

    p(y | x) = softmax_y( T E[f_c] / sqrt(1 + pi / 8 Var[f_c]) )

is the mean-field probit approximation (MacKay's for two classes) of the average of softmax(T f) over Gaussian logits f.
The temperature T, learned or fitted after training, makes up for what the approximation of the posterior leaves out:
one example a class leaves the mode unsure of everything. -log p(y | f) itself, its curvature and the inner loss are
those of ``categorical``: the temperature belongs to the prediction alone.
"""

from dataclasses import dataclass
from math import pi

from torch import Tensor

from meta_exp.hyper import Learned
from meta_exp.likelihoods.categorical import Categorical, CategoricalPredictive


@dataclass(frozen=True)
class Probit(Categorical):
    """The temperature is fixed, or ``learned`` (in log space) with theta."""

    learned: bool = True

    closed_form = True

    def hyperparameters(self) -> dict[str, Learned]:
        """Return what is learned beside theta: the temperature, in log space."""
        return self.free() if self.learned else {}

    def predictive(self, outputs: Tensor, covariance: Tensor) -> CategoricalPredictive:
        """Return the average over draws of the class probabilities above."""
        variance = covariance.diagonal(dim1=-2, dim2=-1).to(outputs)
        return super().predictive(outputs / (1 + pi / 8 * variance.clamp_min(0)).sqrt(), covariance)
