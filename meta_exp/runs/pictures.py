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

from meta_exp.adaptation import Noise, path
from meta_exp.files import make_folder, replacing
from meta_exp.likelihoods.predictive import ClassPredictive, NumberPredictive, Predictive
from meta_exp.tasks import Episode
from meta_exp.tasks.picture import Band, Pictured, Values, View
from meta_exp.tasks.stream import TaskFamily
from meta_exp.terminal import plain
from meta_exp.training.learner import EVALUATION, Learner

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
    picture = family.picture if isinstance(family, Pictured) else None
    if picture is None:
        return []
    import matplotlib.style

    with matplotlib.style.context(STYLE), torch.no_grad():
        figure = picture.draw(views(learner, picture.tasks(), classes=family.classes))
        figure.suptitle(plain(title), fontsize=10, x=0.01, ha="left")
        make_folder(folder)
        return save(figure, folder / picture.name)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Save ``figure`` as PNG and SVG under the name ``stem``, and return the files."""
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    for file in files:
        with replacing(file, "wb") as stream:
            figure.savefig(stream, format=file.suffix[1:])
    return files


def views(learner: Learner, episodes: Episode, *, classes: bool) -> list[View]:
    """Return what the learner makes of each of the tasks ``episodes``, whose targets may be ``classes``."""
    episodes = tree_map(lambda value: value.to(learner.device), episodes)
    drawn = episodes, learner.draws(episodes, seed=0), learner.path_noise(episodes, (EVALUATION, 0))
    found = []
    for i in range(len(episodes.query.y)):
        episode, draws, noise = tree_map_only(Tensor, itemgetter(i), drawn)
        found.append(_view(learner, episode, draws, noise, classes))
    return found


def _view(learner: Learner, episode: Episode, draws: Noise, noise: Noise, classes: bool) -> View:
    algorithm, meta = learner.algorithm, learner.meta()._replace(noise=noise)
    likelihood = algorithm.likelihood.at(meta.hyper)
    (support_x, support_y), (x, y) = episode
    steps = learner.evaluation_steps
    along: dict[int, Values] = {}
    for k, params in enumerate(path(algorithm, episode.support, meta, steps)):
        if k in (0, 1, steps) and not classes:
            along[k] = _mean(likelihood.predictive(*algorithm.predict("map", params, x, meta)))
    served = learner.adapt_task(episode.support, noise, steps)

    def predicted(kind: str) -> Predictive:
        params, posterior, meta = served[kind]
        here = algorithm.likelihood.at(meta.hyper)
        return here.predictive(*algorithm.predict(kind, params, x, meta, posterior, draws))

    networks = None
    if not classes and algorithm.draws_networks:
        kind = "sample" if "sample" in served else "map"  # where there are several networks, those
        at = served[kind]
        outputs = algorithm.predict(kind, at.params, x, at.meta, at.posterior, draws).outputs
        networks = np.stack([_mean(likelihood.plug_in(one)) for one in outputs])
    return View(
        _array(support_x),
        _array(support_y),
        _array(x),
        _array(y),
        path=along,
        band=None if classes else _band(predicted(algorithm.predictives[-1])),
        draws=networks,
        probabilities={kind: _probabilities(predicted(kind)) for kind in learner.predictives} if classes else {},
    )


def _mean(predictive: Predictive) -> Values:
    assert isinstance(predictive, NumberPredictive)
    return _array(predictive.mean)


def _band(predictive: Predictive) -> Band:
    assert isinstance(predictive, NumberPredictive)
    low, high = predictive.interval(0.95)
    return Band(_array(predictive.mean), _array(low), _array(high))


def _probabilities(predictive: Predictive) -> Values:
    assert isinstance(predictive, ClassPredictive)
    return _array(predictive.probabilities)


def _array(value: Tensor) -> np.ndarray:
    """Return real values in float64, and classes as they are."""
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()
