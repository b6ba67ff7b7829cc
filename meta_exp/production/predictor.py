r"""Production: what a trained run is for. For a new task adapt, estimate H, sample, and predict on new data.

    learner = meta_exp.load("outputs/...")     the run's best checkpoint, without its data
    task = learner.adapt(x, y)                 theta_i and N(theta_i, H^-1), from a few examples
    task.predict(x_new)                        mean and variance, or class probabilities and entropy

NumPy arrays come in and go out, or tensors; shapes are those of scikit-learn. A regression's x is [n_samples,
n_features], its y [n_samples] or [n_samples, n_outputs], and a prediction has as many dimensions as y. Images are
[n, C, H, W], or [n, H, W] for one channel: floats in [0, 1], or uint8 up to 255, and in drawings strokes high, paper
low; ``Predictor.read`` makes such an array of files as training read them, and what training normalised is normalised
here. A run on tables takes and gives numbers in the units of its files. Classes keep their labels.

A network with batch statistics depends on what stands beside an image. In training that is a query set with as many
images of each class, which nobody can promise for new ones: alone or with others of its class an image is classified by
chance. So each is predicted beside the task's support, and beside nothing else: an answer does not depend on what else
is asked. docs/evaluation.md has what that costs and what it saves.

Threads may share a predictor, its tasks and its networks: what runs the network waits for its turn, since the
parameters of a task stand in the one network while it runs, and each answer is the one that a single thread would get.
A generator that is given belongs to one thread. Nothing is gained in speed: for that load the run once in each process.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from meta_exp.adaptation import Noise, Params
from meta_exp.config.checks import require
from meta_exp.curvature import Posterior
from meta_exp.likelihoods import Likelihood
from meta_exp.likelihoods.predictive import ClassPredictive, NumberPredictive, Predictive
from meta_exp.models import couples_points
from meta_exp.prediction import KINDS, Prediction
from meta_exp.production import plot
from meta_exp.production.answers import Array, Classification, Regression, as_given, on_cpu
from meta_exp.runs.fit import keep
from meta_exp.runs.restore import Restored, open_run
from meta_exp.runs.shipped import place_of
from meta_exp.scoring.conformal import Conformal
from meta_exp.tasks.episode import Episode, Examples
from meta_exp.tasks.images.files import Treatment, read_images
from meta_exp.tasks.tables.columns import RunColumns, Scale
from meta_exp.training.learner import EVALUATION, Adapted, Learner

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 1000  # that a network sees at once, those of the support that stand beside others included; bounds the memory


def load(
    folder: str | Path,
    overrides: str | Sequence[str] = (),
    device: str | torch.device = "cpu",
    trust: str | Sequence[str] = (),
    model: nn.Module | None = None,
) -> "Predictor":
    """Load the finished run in ``folder`` for use on new tasks; neither data set nor dashboard is needed.

    Args:
        folder: of the run, as train.py made it, or meta-exp/NAME for one that comes with the package.
        overrides: in Hydra's grammar, for example ``["curvature=last_layer"]``, which gives a run of MAML a posterior.
        device: where to compute; posterior draws are the same on each. On a GPU PyTorch takes convolutions in TF32,
            which evaluate.py does not, until ``torch.backends.cudnn.allow_tf32`` is False.
        trust: modules of your own whose classes the run's config may name; they are imported.
        model: the network, of a predictor that was fitted to one that no config can build; it stays as it is.

    Raises:
        ValueError: the run is unfinished, damaged, of another format or unsafe, or an override does not fit it.
        OSError: a file cannot be read.
    """
    run = open_run(place_of(folder), [overrides] if isinstance(overrides, str) else overrides, trust, model)
    run.learner.to(device)
    return Predictor(run)


class Turn:
    """A lock whose copy, like that of the network which it guards, is a new one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type["Turn"], tuple[()]]:
        """Copy and pickle it as a new one."""
        return Turn, ()


class Predictor:
    """A trained run that adapts to new tasks.

    Attributes:
        learner: the meta-parameters with their algorithm and curvature.
        classifies: whether tasks are about classes.
        input_shape: of one input.
        outputs: dimensions of y, or the most classes that a task may have (the run's ways).
        kinds: the predictives that the run offers; the last one is the default of ``predict``.
        columns: the columns of x and y with their scales, of a run on tables; else None.
        coupled: whether the network's output at a point depends on what stands beside it.
        turn: held by the thread that runs the network.
    """

    def __init__(self, run: Restored) -> None:
        self.run = run
        self.learner: Learner = run.learner
        self.classifies = run.family.classes
        self.input_shape = tuple(run.family.input_shape)
        self.outputs = run.family.outputs
        self.kinds = self.learner.algorithm.predictives
        self.turn = Turn()
        self.coupled = couples_points(self.learner.model, self.input_shape)
        self.columns: RunColumns | None = getattr(run.family, "columns", None)
        treatment: Treatment = getattr(run.family, "treatment", Treatment())
        self._invert = treatment.invert
        self._mean, self._std = (torch.tensor(value)[:, None, None] for value in (treatment.mean, treatment.std))

    def __repr__(self) -> str:
        """Return what it is, in a line."""
        algorithm, model, choices = self.learner.algorithm, self.learner.model, self.run.cfg.choices
        weights = sum(parameter.numel() for parameter in model.parameters())
        parts = [f"{choices.algorithm} on {choices.dataset}", f"{type(model).__name__} of {weights} weights"]
        parts += [f"curvature {type(algorithm.curvature).__name__}"] if algorithm.curvature else []
        return f"Predictor({', '.join(parts)})"

    def save(self, folder: str | Path) -> None:
        """Write it into a new folder, from which ``meta_exp.load`` makes one that predicts the same.

        A network that was given as such, and not as a class, is given to ``load`` again; a class of your own is named
        in the folder, and needs ``trust`` there. Tasks of your own are not kept.

        Raises:
            ValueError: the folder holds something.
            OSError: it cannot be written.
        """
        keep(self.run, Path(folder))

    def read(self, files: Sequence[str | Path]) -> np.ndarray:
        """Read image files of any size and mode as inputs of the network; see ``meta_exp.tasks.images.files``."""
        return read_images(files, self.input_shape, self._invert)

    def adapt(self, x: Array, y: Array, steps: int | None = None) -> "AdaptedTask":
        """Adapt to a task's examples and return its posterior.

        Args:
            x: inputs, [n, features] or images.
            y: targets [n] or [n, outputs]; or class labels [n] of any type, 2 to ``outputs`` different ones.
            steps: of gradient descent; as in the run's evaluation by default.

        Raises:
            ValueError: x or y has a wrong shape, values that are not finite or, for classes, too few or too many; or
                the adapted network is not finite.
        """
        steps = self.learner.evaluation_steps if steps is None else steps
        least = min(self.learner.algorithm.inner_steps, 1)
        fits = isinstance(steps, int | np.integer) and steps >= least
        require(fits, "steps", f"an integer, at least {least}", steps)
        with self.turn, torch.no_grad():
            inputs = self.inputs(x)
            targets, classes = self._labels(y) if self.classifies else (self._targets(y), None)
            require(len(inputs) == len(targets), "y", f"{len(inputs)} targets, one for each x", len(targets))
            batch = Episode(*(Examples(inputs[None], targets[None]),) * 2)
            noise = tree_map_only(Tensor, lambda z: z[0], self.learner.path_noise(batch, (EVALUATION, 0)))
            served = self.learner.adapt_task(Examples(inputs, targets), noise, int(steps))
            finite = all(value.isfinite().all() for state in served.values() for value in state.params.values())
            remedy = "bring x and y to the scale of the training tasks, or take fewer steps"
            require(finite, "adapt", "finite parameters after adaptation", "NaN or infinity", remedy)
        flat = classes is None and np.ndim(y) == 1
        return AdaptedTask(self, served, inputs, classes, flat, (on_cpu(x), on_cpu(y)))

    def inputs(self, x: Array) -> Tensor:
        """Return x as the network takes it, [n, *input_shape]; raises ValueError where it cannot be."""
        values = _numbers(x, "x")
        shape, images = self.input_shape, len(self.input_shape) == 3
        if images:
            if values.ndim == 3 and shape[0] == 1:
                values = values[:, None]
            if values.dtype == torch.uint8:
                values = values * (1 / 255)  # a product, as in training
        expected = f"shape [n, {', '.join(map(str, shape))}]"
        remedy = "reshape your data with x.reshape(-1, 1)" if values.ndim == 1 and shape == (1,) else ""
        remedy = "make it of image files with read()" if images else remedy
        require(tuple(values.shape[1:]) == shape, "x", expected, f"shape {list(values.shape)}", remedy)
        require(len(values) >= 1, "x", "at least one row", "none")
        if self.columns:
            values = self.columns.x_scale.standardize(values)
        values = _finite(values, self._dtype, "x")
        if images:
            low, high = float(values.min()), float(values.max())
            remedy = "divide by 255, or give uint8"
            require(0 <= low <= high <= 1, "x", "pixels in [0, 1]", f"{low:.4g} to {high:.4g}", remedy)
            values = (values - self._mean) / self._std
        return values.to(self.learner.device)

    def picture_of(self, x: Array) -> np.ndarray:
        """Return images as people saw them, [n, H, W] or [n, H, W, 3] in [0, 1]: ink, which is high, dark."""
        values = on_cpu(x)
        values = values / 255 if values.dtype == np.uint8 else values
        values = values[:, None] if values.ndim == 3 else values
        if self.input_shape[0] == 1:
            return values[:, 0] if self._invert is False else 1 - values[:, 0]
        return np.moveaxis(values, 1, -1)

    @property
    def _y_scale(self) -> Scale | None:
        return self.columns.y_scale if self.columns else None

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.learner.model.parameters()).dtype

    def _targets(self, y: Array) -> Tensor:
        values = _numbers(y, "y")
        expected = f"shape [n, {self.outputs}]" + (" or [n]" if self.outputs == 1 else "")
        if values.ndim == 1 and self.outputs == 1:
            values = values[:, None]
        require(values.shape[1:] == (self.outputs,), "y", expected, f"shape {list(values.shape)}")
        if self._y_scale:
            values = self._y_scale.standardize(values)
        values = _finite(values, self._dtype, "y")
        if self.learner.algorithm.likelihood.targets == "counts":
            bad = ((values < 0) | (values != values.round())).nonzero().tolist()
            for row, column in bad[:1]:
                require(False, f"y, row {row}, column {column}", "a count 0, 1, 2, ...", float(values[row, column]))
        return values.to(self.learner.device)

    def _labels(self, y: Array) -> tuple[Tensor, Array]:
        """Return each label's place among the sorted classes, and the classes."""
        labels = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
        require(labels.ndim == 1, "y", "labels of shape [n]", f"shape {list(labels.shape)}")
        if labels.dtype.kind == "f":
            bad = np.flatnonzero(~np.isfinite(labels))
            require(not len(bad), f"y, row {bad[0] if len(bad) else ''}", "a class label", "NaN or infinity")
        try:
            classes, places = np.unique(labels, return_inverse=True)
        except TypeError as error:
            raise ValueError(f"y: expected labels of one type, got a mixture ({error})") from error
        ways = self.outputs
        names = ", ".join(map(str, classes[:10]))
        expected = f"2 to {ways} classes, since the run was trained for {ways} ways"
        require(2 <= len(classes) <= ways, "y", expected, f"{len(classes)} ({names})")
        found = torch.from_numpy(classes) if isinstance(y, Tensor) else classes
        return torch.from_numpy(places).to(self.learner.device), found


@dataclass(frozen=True)
class AdaptedTask:
    """One task's parameters theta_i, and where the run has a curvature its posterior N(theta_i, H^-1).

    A task with fewer classes than the network has outputs uses the first ones: the probabilities are those of its own
    classes, given that it is one of them.

    Attributes:
        classes_: the class labels in ascending order, or None for regression.
    """

    predictor: Predictor
    served: dict[str, Adapted]  # by predictive; each with the values that it was calibrated to
    support: Tensor  # inputs [N, ...] of the network, which it adapted to
    classes_: Array | None
    flat: bool  # y was given as [n]
    given: tuple[np.ndarray, np.ndarray]  # x and y, as they were

    def __repr__(self) -> str:
        """Return what it is, in a line."""
        classes = "" if self.classes_ is None else f" of {len(self.classes_)} classes"
        return f"AdaptedTask({len(self.support)} examples{classes}, {', '.join(self.served)})"

    def predict(
        self,
        x: Array,
        kind: str | None = None,
        samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Regression | Classification:
        """Predict at new inputs x, each as if it were asked alone.

        Args:
            x: inputs, [n, features] or images.
            kind: ``map``, the adapted network; ``sample``, the average over networks drawn from the posterior, or
                ``linearized``, over linearised ones. By default linearized where there is a posterior, else map.
            samples: posterior draws for the predictives that need them; as in the run's evaluation by default.
            generator: of the draws; by default one with the same seed in each call.

        Raises:
            ValueError: x has a wrong shape or values that are not finite, or the run does not offer ``kind``.
        """
        kind = kind or self.predictor.kinds[-1]
        require(kind in KINDS, "kind", f"one of {', '.join(KINDS)}", kind)
        self._refuse(f"kind={kind}", kind in self.predictor.kinds)
        samples = self.predictor.learner.samples if samples is None else samples
        with self.predictor.turn, torch.no_grad():
            inputs = self.predictor.inputs(x)
            drawn = kind == "sample" or (kind == "linearized" and not self._likelihood(kind).closed_form)
            noise = self._noise(samples, generator) if drawn else None
            predictive = self._likelihood(kind).predictive(*self._predict(kind, inputs, noise))
        conformal = self.predictor.learner.conformal.get(kind)
        answer = self._regression if self.classes_ is None else self._classification
        return answer(predictive, x, conformal)

    def sample(self, n: int = 1, generator: torch.Generator | None = None) -> list["Network"]:
        """Draw n networks from the posterior; one is LLAMA's rule for production.

        Where the posterior is around the mode of the linear model, they are functions of that model. A run that ends in
        several networks draws among them.
        """
        self._refuse("sample", self.predictor.learner.algorithm.draws_networks)
        with self.predictor.turn, torch.no_grad():
            noise = self._noise(n, generator)
        return [Network(self, tree_map(lambda z, s=s: z[s : s + 1], noise)) for s in range(n)]

    def plot(
        self, x: Array | None = None, kind: str | None = None, level: float = 0.95, ax: "Axes | None" = None
    ) -> "Axes":
        """Draw the task and return the axes.

        Inputs of one dimension have a curve, with the interval that holds y with probability ``level``, and the
        examples; of classes the probability of each. Images have a row a class: its examples and, of the images ``x``,
        those that are taken for it.

        Args:
            x: where to predict; by default over the range of the examples and a little beyond, and of no images.
            kind: of the prediction; see ``predict``.
            level: of the interval.
            ax: axes to draw into; by default of a new figure.

        Raises:
            ValueError: inputs have several dimensions and are no images, or x does not fit.
        """
        shape, images = self.predictor.input_shape, len(self.predictor.input_shape) == 3
        drawable = images or shape == (1,)
        require(drawable, "plot", "inputs of one dimension, or images", f"inputs of shape {list(shape)}")
        shown, y = self.given
        if images:
            found = None if x is None else self.predict(x, kind=kind)
            ax = plot.new_axes() if ax is None else ax
            picture = self.predictor.picture_of
            plot.draw_images(ax, picture(shown), y, None if x is None else picture(x), found)  # type: ignore[arg-type]
            return ax
        grid = np.sort(on_cpu(x), 0) if x is not None else plot.grid_over(shown)
        found = self.predict(grid, kind=kind)
        ax = plot.new_axes() if ax is None else ax
        columns = self.predictor.columns
        ax.set_xlabel(columns.x[0] if columns else "x")
        if isinstance(found, Classification):
            plot.draw_probabilities(ax, grid, found, shown, y)
        else:
            ax.set_ylabel(columns.y[0] if columns and len(columns.y) == 1 else "y")
            plot.draw_curve(ax, grid, found, shown, y, level)
        return ax

    @property
    def theta_i(self) -> Params:
        """The adapted parameters, of the predictive that is the default."""
        return self.served[self.predictor.kinds[-1]].params

    @property
    def posterior(self) -> Posterior | None:
        """The posterior around them, or None."""
        return self.served[self.predictor.kinds[-1]].posterior

    def _likelihood(self, kind: str) -> Likelihood:
        """The likelihood of the task's targets, with what was learned for it or fitted to ``kind``."""
        return self.predictor.learner.algorithm.likelihood.at(self.served[kind].meta.hyper)

    def _refuse(self, key: str, offered: bool) -> None:
        """Raise ValueError unless what ``key`` says is offered by the run."""
        algorithm = self.predictor.learner.algorithm
        if algorithm.draws_networks:
            require(offered, key, f"one of {', '.join(self.predictor.kinds)}", f"algorithm={algorithm.name}")
        remedy = 'give it one after the fact: meta_exp.load(run, ["curvature=last_layer"])'
        remedy += ", on the command line curvature=last_layer"
        require(offered, key, "a run with a curvature", "curvature=none", remedy)

    def _drawn(self, x: Array, draw: Noise) -> Array:
        """Return the mean, or the probabilities, of the network that ``draw`` stands for."""
        kind = "sample" if "sample" in self.served else self.predictor.kinds[-1]
        [outputs] = self._predict("sample", self.predictor.inputs(x), draw, at=self.served[kind]).outputs
        predictive = self._likelihood(kind).plug_in(outputs)
        if self.classes_ is not None:
            return as_given(self._of_own_classes(predictive).probabilities, x)
        return self._regression(predictive, x).mean

    def _noise(self, samples: int, generator: torch.Generator | None) -> Noise:
        require(isinstance(samples, int | np.integer) and samples >= 1, "samples", "an integer, at least 1", samples)
        generator = generator or torch.Generator().manual_seed(0)
        algorithm = self.predictor.learner.algorithm
        noise = algorithm.draws(generator, (int(samples),), self.predictor.learner.meta().theta, len(self.support))
        return tree_map(lambda z: z.to(self.predictor.learner.device), noise)

    def _predict(self, kind: str, x: Tensor, noise: Noise | None, at: Adapted | None = None) -> Prediction:
        """Predict each x as if nothing else were asked, within bounded memory."""
        algorithm = self.predictor.learner.algorithm
        params, posterior, meta = at or self.served[kind]

        def predict(x: Tensor, noise: Noise | None) -> Prediction:
            return algorithm.predict(kind, params, x, meta, posterior, noise)

        if not self.predictor.coupled:
            outputs, spread = zip(*(predict(piece, noise) for piece in x.split(POINTS)), strict=True)
            return Prediction(torch.cat(outputs, 1), torch.cat(spread))

        def last(x: Tensor, noise: Noise | None) -> Prediction:
            outputs, covariance = predict(x, noise)
            return Prediction(outputs[:, -1], covariance[-1])

        at_once = max(1, POINTS // (len(self.support) + 1))
        draws = 1 if noise is None else len(tree_leaves(noise)[0])
        found = []
        for start in range(0, draws, at_once):
            part = tree_map_only(Tensor, lambda z, start=start: z[start : start + at_once], noise)
            found.append(self._beside_support(partial(last, noise=part), x, min(at_once, draws)))
        return Prediction(torch.cat([part.outputs for part in found], 1).transpose(0, 1), found[0].covariance)

    def _beside_support(self, function: Callable[[Tensor], Any], x: Tensor, times: int = 1) -> Any:
        """Stack ``function`` of the support with one x behind it, for each x; it takes ``times`` the memory."""
        at_once = max(1, POINTS // ((len(self.support) + 1) * times))
        one = vmap(lambda point: function(torch.cat([self.support, point[None]])))
        return tree_map(lambda *parts: torch.cat(parts), *map(one, x.split(at_once)))

    def _regression(self, predictive: Predictive, x: Array, conformal: Conformal | None = None) -> Regression:
        assert isinstance(predictive, NumberPredictive)
        mean, variance, scale = predictive.mean, predictive.variance, self.predictor._y_scale
        if scale:
            mean, variance = scale.restore(mean), scale.restore_variance(variance)
        mean, variance = (as_given(self._as_y(value), x) for value in (mean, variance))
        return Regression(mean, variance, predictive, scale, conformal)

    def _classification(self, predictive: Predictive, x: Array, conformal: Conformal | None) -> Classification:
        own = self._of_own_classes(predictive)
        places = own.probabilities.argmax(-1)
        assert self.classes_ is not None
        labels = self.classes_[places if isinstance(self.classes_, Tensor) else places.cpu().numpy()]
        probabilities, entropy = as_given(own.probabilities, x), as_given(own.entropy, x)
        return Classification(probabilities, entropy, labels, self.classes_, own, conformal)

    def _of_own_classes(self, predictive: Predictive) -> ClassPredictive:
        assert isinstance(predictive, ClassPredictive)
        assert self.classes_ is not None
        return predictive.given(len(self.classes_))

    def _as_y(self, values: Tensor) -> Tensor:
        """Give ``values`` [n, outputs] the dimensions of y."""
        return values[:, 0] if self.flat else values


@dataclass(frozen=True)
class Network:
    """One network of a task, by the noise ``draw``; call it with x for its mean [n] or probabilities [n, k]."""

    task: AdaptedTask
    draw: Noise

    def __repr__(self) -> str:
        """Return what it is."""
        return f"Network(drawn from {self.task!r})"

    def __call__(self, x: Array) -> Array:
        """Return the mean [n] or [n, outputs] without noise, or probabilities [n, k], at x."""
        with self.task.predictor.turn, torch.no_grad():
            return self.task._drawn(x, self.draw)


def _numbers(values: Array, name: str) -> Tensor:
    """Return ``values`` as a tensor: uint8 as it is, anything else in floating point."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    array = np.asarray(values)
    if array.dtype == np.uint8:
        return torch.from_numpy(np.array(array, order="C"))  # PyTorch takes no reversed and no read-only memory
    try:
        return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers, got {error}") from error


def _finite(values: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Return ``values`` in ``dtype``; raises ValueError at the first that is not finite, with its row and column."""
    values = values.to(dtype)
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        row, *place = bad[0].tolist()
        column = f", column {place[0]}" if len(place) == 1 else f", pixel {place}" if place else ""
        require(False, f"{name}, row {row}{column}", "a finite number", float(values[tuple(bad[0])]))
    return values
