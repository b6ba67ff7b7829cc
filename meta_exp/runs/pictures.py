"""Pictures of what a learner does with a new task."""

from operator import itemgetter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from meta_exp.adaptation import Noise, adapt, path
from meta_exp.likelihoods.predictive import ClassPredictive, NumberPredictive, Predictive
from meta_exp.tasks import Episode
from meta_exp.tasks.stream import EVALUATION_SEED, CurveFamily, TaskFamily, draw_tasks
from meta_exp.training.learner import EVALUATION, Learner

STYLE = Path(__file__).with_name("meta_exp.mplstyle")
PICTURE_TASKS = 3
DRAWS = 8  # of the posterior, in a fan


def draw(learner: Learner, family: TaskFamily, title: str, folder: Path) -> list[Path]:
    """Draw the picture of the task family into ``folder`` as PNG and SVG, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    with plt.style.context(STYLE), torch.no_grad():
        if isinstance(family, CurveFamily):
            name, figure = "fan", draw_fan(learner, family)
        else:
            name, figure = "episode", draw_episode(learner, family)
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        return save(figure, folder / name)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Save ``figure`` as PNG and SVG under the name ``stem``, close it, and return the files."""
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    for file in files:
        figure.savefig(file)
    plt.close(figure)
    return files


def draw_fan(learner: Learner, family: CurveFamily) -> Figure:
    """Regression tasks whose support lies in the left half: does the learner know what it does not know?"""
    curves = family.draw_curves(np.random.default_rng(EVALUATION_SEED), PICTURE_TASKS)
    figure, axes = plt.subplots(1, PICTURE_TASKS, figsize=(11, 3.6), sharey=True, layout="constrained")
    curves = tree_map(lambda value: value.to(learner.device), curves)
    noise = learner.draws(curves, seed=0), learner.path_noise(curves, (EVALUATION, 0))
    for task, ax in enumerate(axes):
        draw_curve(ax, learner, *tree_map_only(Tensor, itemgetter(task), (curves, *noise)))
        ax.set_xlabel("x")
    axes[0].set_ylabel("y")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=len(labels))
    return figure


def draw_curve(ax: Axes, learner: Learner, episode: Episode, draws: Noise = None, noise: Noise = None) -> None:
    """One task: the truth, the support, predictions before and after adaptation, the band around the last, and draws.

    The draws are networks of the posterior, for the ``noise`` of each; they do not stretch the axes.
    """
    meta = learner.meta()._replace(noise=noise)
    algorithm, likelihood = learner.algorithm, learner.algorithm.likelihood.at(meta.hyper)
    support, (x, truth) = episode
    steps = learner.evaluation_steps
    states = list(path(algorithm, support, meta, steps))
    posterior = algorithm.posterior(states[-1], support, meta)
    kind = "map" if posterior is None else "linearized"
    predictive = likelihood.predictive(*algorithm.predict(kind, states[-1], x, meta, posterior, draws))
    assert isinstance(predictive, NumberPredictive)
    mean, (lower, upper) = predictive.mean[:, 0], predictive.interval(0.95)
    grid = _numpy(x[:, 0])
    label = "95 % band" + (" (noise only)" if posterior is None else "")
    low, high = _numpy(lower[:, 0]), _numpy(upper[:, 0])
    ax.fill_between(grid, low, high, color="C0", alpha=0.18, lw=0, label=label)
    ax.plot(grid, _numpy(truth[:, 0]), color="black", lw=1.2, label="true curve")
    for k, style in {0: ":", 1: "--", steps: "-"}.items():
        name = {0: "before adaptation", 1: "after 1 step"}.get(k, f"after {k} steps")
        color = "C0" if k else "gray"
        at_k = likelihood.predictive(*algorithm.predict("map", states[k], x, meta))
        ax.plot(grid, _mean(at_k), style, color=color, lw=1.4, label=name)
    ax.plot(_numpy(support.x[:, 0]), _numpy(support.y[:, 0]), "o", color="C3", ms=5, label="support points", zorder=5)
    if posterior is not None:
        drawn = algorithm.predict("sample", states[-1], x, meta, posterior, draws).outputs[:DRAWS]
        curves = np.stack([_mean(likelihood.plug_in(outputs)) for outputs in drawn])
        lines = ax.plot(grid, curves.T, color="0.45", lw=0.5, alpha=0.7, zorder=1, scaley=False)
        lines[0].set_label("posterior draws")
    ax.set_title(f"{len(support.x)} support points, MSE over the curve {float(((mean - truth[:, 0]) ** 2).mean()):.2f}")


def _mean(predictive: Predictive) -> np.ndarray:
    """The mean [M] of y."""
    assert isinstance(predictive, NumberPredictive)
    return _numpy(predictive.mean[:, 0])


def draw_episode(learner: Learner, family: TaskFamily) -> Figure:
    """A classification task: its support images, and query images with the probabilities that each predictive gives."""
    episode = tree_map(lambda value: value.to(learner.device), draw_tasks(family, "test", 0, 1))
    drawn = episode, learner.draws(episode, seed=0), learner.path_noise(episode, (EVALUATION, 0))
    episode, draws, noise = tree_map_only(Tensor, lambda value: value[0], drawn)
    algorithm, meta = learner.algorithm, learner.meta()._replace(noise=noise)
    support, query = episode
    likelihood = algorithm.likelihood.at(meta.hyper)
    theta_i = adapt(algorithm, support, meta, learner.evaluation_steps)
    posterior = algorithm.posterior(theta_i, support, meta)
    probabilities = {}
    for kind in learner.predictives:
        predictive = likelihood.predictive(*algorithm.predict(kind, theta_i, query.x, meta, posterior, draws))
        assert isinstance(predictive, ClassPredictive)
        probabilities[kind] = predictive.probabilities
    return _episode_figure(support.x, support.y, query.x, query.y, probabilities)


def _episode_figure(
    support: Tensor, labels: Tensor, query: Tensor, truth: Tensor, probabilities: dict[str, Tensor]
) -> Figure:
    ways = int(labels.max()) + 1
    shown = [int((truth == c).nonzero()[i]) for i in range(2) for c in range(ways) if i < int((truth == c).sum())][:10]
    columns = max(ways, 5)
    rows = -(-len(shown) // columns)
    figure = plt.figure(figsize=(1.9 * columns, 2.0 + 2.6 * rows), layout="constrained")
    top, bottom = np.ravel(np.asarray(figure.subfigures(2, 1, height_ratios=[1.5, 2.6 * rows])))
    top.suptitle("support: one image of each class of the task", x=0.01, ha="left", fontsize=9)
    letters = [chr(ord("A") + c) if ways <= 26 else str(c) for c in range(ways)]
    for c, ax in enumerate(np.atleast_1d(top.subplots(1, columns))):
        ax.set_axis_off()
        if c < ways:
            _show_image(ax, support[labels == c][0])
            ax.set_title(f"class {letters[c]}", fontsize=9)
    bottom.suptitle(
        "query: new images, and the probability of each class (true class in black)", x=0.01, ha="left", fontsize=9
    )
    grid = bottom.subplots(2 * rows, columns, squeeze=False, gridspec_kw={"height_ratios": [1.0, 0.9] * rows})
    for ax in grid.flat:
        ax.set_axis_off()
    for i, q in enumerate(shown):
        image, bars = grid[2 * (i // columns)][i % columns], grid[2 * (i // columns) + 1][i % columns]
        _show_image(image, query[q])
        right = int(next(reversed(probabilities.values()))[q].argmax()) == int(truth[q])
        image.set_title(f"{letters[int(truth[q])]}: {'right' if right else 'WRONG'}", fontsize=9)
        _draw_bars(bars, {kind: p[q] for kind, p in probabilities.items()}, int(truth[q]), letters)
    if len(probabilities) > 1:
        handles, names = grid[1][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncol=len(names))
    return figure


def _draw_bars(ax: Axes, probabilities: dict[str, Tensor], truth: int, letters: list[str]) -> None:
    ax.set_axis_on()
    ways, kinds = len(letters), len(probabilities)
    width = 0.8 / kinds
    for j, (kind, p) in enumerate(probabilities.items()):
        positions = np.arange(ways) + (j - (kinds - 1) / 2) * width
        ax.bar(positions, _numpy(p), width, color=f"C{j}", alpha=0.9 if j == 0 else 0.6, label=kind)
    ax.set_ylim(0, 1)
    ax.set_yticks([0, 1])
    ax.set_xticks(range(ways), letters, fontsize=7, color="gray")
    tick = ax.get_xticklabels()[truth]
    tick.set(color="black", fontweight="bold")


def _show_image(ax: Axes, image: Tensor) -> None:
    pixels = _numpy(image.movedim(0, -1))
    ax.imshow(pixels if pixels.shape[-1] == 3 else 1 - pixels[..., 0], cmap="gray", vmin=0, vmax=1)


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().cpu().double().numpy()
