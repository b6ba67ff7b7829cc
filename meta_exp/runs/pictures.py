"""Pictures of what a learner does with new tasks: computed here, drawn by the task family, saved here.

A family without a picture has none, and one whose picture fails costs a line of the log.
"""

from __future__ import annotations

import logging
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from meta_exp.curvature import Noise
from meta_exp.likelihoods import Gaussian, Likelihood
from meta_exp.prediction import Prediction, predict
from meta_exp.tasks import Episode
from meta_exp.tasks.picture import Band, Pictured, Values, View
from meta_exp.tasks.stream import TaskFamily
from meta_exp.training.learner import Learner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
STYLE = Path(__file__).with_name("meta_exp.mplstyle")


def draw_or_warn(learner: Learner, family: TaskFamily, title: str, folder: Path, goes_on: str) -> list[Path]:
    """Draw as ``draw`` does; where that fails, say so, and that what is ``goes_on`` without the picture."""
    try:
        return draw(learner, family, title, folder)
    except Exception as error:  # whatever a family's own code, its data or a disk can provoke
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        log.warning("picture: expected one of %s, got %s; %s without it", type(family).__name__, reason, goes_on)
        return []


def draw(learner: Learner, family: TaskFamily, title: str, folder: Path) -> list[Path]:
    """Draw the picture of the task family, if it has one, into ``folder`` as PNG and SVG, and return the files."""
    if not isinstance(family, Pictured):
        return []
    import matplotlib.style

    picture = family.picture
    with matplotlib.style.context(STYLE), torch.no_grad():
        figure = picture.draw(views(learner, picture.tasks(), classes=family.classes))
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        folder.mkdir(parents=True, exist_ok=True)
        return save(figure, folder / picture.name)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Save ``figure`` as PNG and SVG under the name ``stem``, and return the files."""
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    for file in files:
        figure.savefig(file)
    return files


def views(learner: Learner, episodes: Episode, *, classes: bool) -> list[View]:
    """Return what the learner makes of each of the tasks ``episodes``, whose targets may be ``classes``."""
    episodes = tree_map(lambda value: value.to(learner.device), episodes)
    noise = learner.noise(episodes, seed=0)
    tasks = range(len(episodes.query.y))
    each = [tree_map_only(Tensor, itemgetter(task), (episodes, noise)) for task in tasks]
    return [_view(learner, episode, own, classes) for episode, own in each]


def _view(learner: Learner, episode: Episode, noise: Noise | None, classes: bool) -> View:
    theta, hyper = learner.meta_parameters()
    algorithm, likelihood = learner.algorithm, learner.algorithm.likelihood.at(hyper)
    (support_x, support_y), (x, y) = episode
    steps = learner.evaluation_steps
    path = algorithm.adapt(theta, episode.support, steps)
    posterior = algorithm.posterior(path[-1], episode.support, hyper)

    def predicted(kind: str) -> Prediction:
        return predict(kind, algorithm.predict, path[-1], x, likelihood, posterior, noise)

    certain = posterior is None
    return View(
        _array(support_x),
        _array(support_y),
        _array(x),
        _array(y),
        path={k: _array(algorithm.predict(path[k], x)) for k in (0, 1, steps)},
        band=None if classes else _band(likelihood, predicted("map" if certain else "linearized")),
        draws=None if classes or certain else _array(predicted("sample").outputs),
        probabilities={kind: _probabilities(predicted(kind)) for kind in learner.predictives} if classes else {},
    )


def _band(likelihood: Likelihood, prediction: Prediction) -> Band:
    assert isinstance(likelihood, Gaussian)
    variance = prediction.covariance.diagonal(dim1=-2, dim2=-1) + likelihood.variance
    mean, half = prediction.outputs.mean(0), 1.96 * variance.sqrt()
    return Band(_array(mean), _array(mean - half), _array(mean + half))


def _probabilities(prediction: Prediction) -> Values:
    return _array(prediction.outputs.softmax(-1).mean(0))


def _array(value: Tensor) -> np.ndarray:
    """Return real values in float64, and classes as they are."""
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()
