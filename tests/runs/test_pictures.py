"""Pictures are drawn for both kinds of tasks, and name what they show."""

import pytest
import torch

from meta_exp.runs import pictures
from meta_exp.runs.build import build

SMOKE = ["trainer=smoke", "logger=none", "samples=3"]


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


@pytest.mark.parametrize("overrides", [[], ["algorithm=maml"]], ids=["llama", "maml"])
def test_fan(config, tmp_path, overrides):
    run = build(config(*SMOKE, *overrides))
    figure = pictures.draw_fan(run.learner, run.family)
    for words in ("true curve", "support points", "before adaptation", "after 1 step", "after 10 steps", "95 % band"):
        assert words in texts(figure)
    assert len(figure.axes) == pictures.PICTURE_TASKS
    files = pictures.draw(run.learner, run.family, "title", tmp_path / "plots")
    assert sorted(file.name for file in files) == ["fan.png", "fan.svg"]
    assert all(file.stat().st_size > 5000 for file in files)


def test_band_is_the_linearized_predictive(config):
    """The band's half width is 1.96 times the deviation of the linearised outputs with noise."""
    run = build(config(*SMOKE))
    figure = pictures.draw_fan(run.learner, run.family)
    (band,) = figure.axes[0].collections
    vertices = band.get_paths()[0].vertices
    narrowest = 2 * 1.96 * run.learner.algorithm.likelihood.sigma_noise
    left = vertices[vertices[:, 0] == -5][:, 1]
    assert left.max() - left.min() > narrowest


def test_episode(config, tmp_path, omniglot_root):
    arguments = ["dataset=omniglot", "curvature=last_layer", "model.filters=8", "dataset.queries=2", "dataset.ways=6"]
    run = build(config(*SMOKE, *arguments, f"dataset.root={omniglot_root}"))
    with torch.no_grad():
        figure = pictures.draw_episode(run.learner, run.family)
    for words in ("support", "query", "class F", "map", "linearized"):
        assert words in texts(figure)
    files = pictures.draw(run.learner, run.family, "title", tmp_path / "plots")
    assert sorted(file.name for file in files) == ["episode.png", "episode.svg"]
