r"""The exact GGN of the last linear layer, in dual form; the other layers are taken as known.

With features a_n (and the bias' 1) the rows are S_n^T (x) a_n, so that

    G G^T [(n, r), (m, q)] = (S_n^T S_m)[r, q] (a_n . a_m)

and one forward pass gives everything, whatever the network before it and however it couples its points. Without S it is
one kernel for all outputs, which ``classes`` makes use of for the mode.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from meta_exp.adaptation import Params
from meta_exp.config.checks import require
from meta_exp.curvature.base import Posterior
from meta_exp.curvature.classes import ClassPosterior, OutputsFeatures
from meta_exp.curvature.dual import Dual
from meta_exp.curvature.rows import Directions, Outer, Rows, with_bias
from meta_exp.curvature.taps import Taps, layers_with_parameters
from meta_exp.hyper import Hyper
from meta_exp.likelihoods import Likelihood
from meta_exp.tasks.episode import Examples


class LastLayer(Dual):
    """Exact GGN of the layer defined last, which must be Linear and give the outputs."""

    default_prior_precision = 10.0

    def __init__(
        self, model: nn.Module, input_shape: Sequence[int], prior_precision: float = 1.0, learned: bool = False
    ) -> None:
        self.name, self.layer = list(layers_with_parameters(model).items())[-1]
        require(isinstance(self.layer, nn.Linear), "curvature=last_layer", "a Linear layer at the end", self.layer)
        super().__init__(Taps(model, input_shape, {self.name: self.layer}), prior_precision, learned)
        expected = f"{self.name!r}, the layer defined last, to give the outputs themselves"
        require(self.name in self.taps.final, "curvature=last_layer", expected, "something after it")

    def jacobian_rows(self, params: Params, x: Tensor, directions: Directions) -> tuple[Tensor, Rows]:
        """Return the outputs, and the rows of D_n^T J_n for the last layer."""
        outputs, inputs, _ = self.taps.linearize(params, x)
        d = directions(outputs)
        features = inputs[self.name].repeat_interleave(d.shape[-1], 0)
        return outputs, {self.name: Outer(d.mT.flatten(0, 1), features, self.layer.bias is not None)}

    def posterior(
        self,
        params: Params,
        data: Examples,
        likelihood: Likelihood,
        hyper: Hyper,
        prior_mean: Params | None = None,
    ) -> Posterior:
        """Return the posterior of one task; around the mode of classes by their blocks."""
        if prior_mean is None or not likelihood.softmax:
            return super().posterior(params, data, likelihood, hyper, prior_mean)

        def features(x: Tensor) -> OutputsFeatures:
            outputs, inputs, _ = self.taps.linearize(params, x)
            return outputs, with_bias(self.layer, inputs[self.name])

        tau = self.tau(hyper).to(data.x.device)
        return ClassPosterior(likelihood, data, tau, self.name, self.layer, features, params, prior_mean)
