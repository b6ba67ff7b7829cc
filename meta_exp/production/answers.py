"""What a task answers: predictive distributions of numbers or of classes, as arrays or tensors.

NumPy arrays come out where arrays were given, and tensors where tensors were.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from meta_exp.config.checks import require
from meta_exp.installation import typed
from meta_exp.likelihoods.predictive import ClassPredictive, NumberPredictive
from meta_exp.scoring.conformal import Conformal
from meta_exp.tasks.tables.columns import Scale

Array = Any  # a NumPy array or a tensor, whichever was given
Interval = tuple[Array, Array]
METHODS = ("predictive", "conformal")  # of an interval
SHOWN = 3  # points of a prediction, in a line


@dataclass(frozen=True)
class Regression:
    """Predictive distributions of y at n points, observation noise included; a mixture for draws.

    ``mean`` and ``variance`` are [n] or [n, outputs], as y was given.
    """

    mean: Array
    variance: Array
    _predictive: NumberPredictive
    _scale: Scale | None = None
    _conformal: Conformal | None = None

    def __repr__(self) -> str:
        """Return the first means and deviations."""
        return f"Regression({len(self.mean)} points: {_first(self.mean, self.std)})"

    @property
    def std(self) -> Array:
        """The standard deviation, [n] or [n, outputs]."""
        return self.variance**0.5

    def interval(self, level: float = 0.95, method: Literal["predictive", "conformal"] = "predictive") -> Interval:
        """Return the lower and upper end of an interval that holds y with probability ``level``.

        Args:
            level: the probability, between 0 and 1.
            method: ``predictive``, the central interval of the predictive, which is right where the predictive is, and
                of counts holds y with that probability or more; or ``conformal``, mean +- q std, which on average over
                tasks like the run's, with as many examples, holds y with that probability whatever the predictive is
                worth; infinite where the run's calibration had too few tasks for the level.

        Raises:
            ValueError: the level is no probability, or the run has no thresholds for conformal intervals.
        """
        require(0 < level < 1, "level", "a probability between 0 and 1", level)
        require(method in METHODS, "method", f"one of {', '.join(METHODS)}", method)
        if method == "conformal":
            std = self._predictive.variance.sqrt()
            low, high = _known("method=conformal", self._conformal).interval(self._predictive.mean, std, level)
        else:
            low, high = self._predictive.interval(level)
        if self._scale:
            low, high = self._scale.restore(low), self._scale.restore(high)
        return as_given(low.reshape(self.mean.shape), self.mean), as_given(high.reshape(self.mean.shape), self.mean)


@dataclass(frozen=True)
class Classification:
    """Class probabilities [n, k] in the order of ``classes`` [k], their ``entropy`` [n] in nats, ``labels`` [n]."""

    probabilities: Array
    entropy: Array
    labels: Array
    classes: Array
    _predictive: ClassPredictive
    _conformal: Conformal | None = None

    def __repr__(self) -> str:
        """Return the first labels and their probabilities."""
        sure = [float(row.max()) for row in self.probabilities[:SHOWN]]
        first = ", ".join(f"{name} {p:.2f}" for name, p in zip(self.labels, sure, strict=False))
        return f"Classification({len(self.labels)} points: {first}{', ...' * (len(self.labels) > SHOWN)})"

    def prediction_set(self, level: float = 0.95, empty: bool = False) -> Array:
        """Return which classes are in the conformal set of each point, booleans [n, k] in the order of ``classes``.

        On average over tasks like the run's, with as many classes and examples, the set holds the true class with
        probability ``level`` or more. The likeliest class is always in it; with ``empty`` it need not be, and the
        probability is ``level``: a set that is empty then says that nothing fits.

        Raises:
            ValueError: the level is no probability, or the run has no thresholds for conformal sets.
        """
        record = _known("prediction_set", self._conformal)
        return as_given(record.prediction_set(self._predictive.probabilities, level, empty), self.probabilities)


def as_given(values: Tensor, like: Array) -> Array:
    """Return ``values`` as a tensor on the device of ``like`` if that is one, else as a NumPy array."""
    return values.to(like.device) if isinstance(like, Tensor) else values.cpu().numpy()


def on_cpu(values: Array) -> np.ndarray:
    """Return ``values`` as a NumPy array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _first(mean: Array, std: Array) -> str:
    """Return the first of several means with their deviations."""
    rows = zip(on_cpu(mean)[:SHOWN].tolist(), on_cpu(std)[:SHOWN].tolist(), strict=True)
    words = [f"{np.round(m, 4)} ± {np.round(s, 4)}" for m, s in rows]
    return ", ".join(words) + ", ..." * (len(mean) > SHOWN)


def _known(key: str, conformal: Conformal | None) -> Conformal:
    """Return the thresholds of a predictive; raises ValueError where there are none."""
    remedy = f"{typed('evaluate')} RUN calibrate=true makes them for the predictives of its evaluation"
    require(conformal is not None, key, "a run that has thresholds for this predictive", "none", remedy)
    assert conformal is not None
    return conformal
