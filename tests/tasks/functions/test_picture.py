"""The fan, from arrays: it names what it shows, and shows the numbers that it was given."""

import numpy as np
import pytest

from meta_exp.tasks import Sinusoid
from meta_exp.tasks.functions.picture import DRAWS, TASKS
from meta_exp.tasks.picture import Band, View


def views(draws):
    (support_x, support_y), (x, y) = Sinusoid().picture.tasks()
    for task in range(TASKS):
        truth = y[task].double().numpy()
        path = {k: truth * k / 7 for k in (0, 1, 7)}
        band = Band(truth + 1, truth - 1, truth + 3)
        yield View(support_x[task].numpy(), support_y[task].numpy(), x[task].numpy(), truth, path, band, draws, {})


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


@pytest.mark.parametrize("posterior", [True, False])
def test_what_is_shown(posterior):
    given = list(views(np.random.default_rng(0).normal(size=(30, 200, 1)) if posterior else None))
    figure = Sinusoid().picture.draw(given)
    assert len(figure.axes) == TASKS
    band = "95 % band" if posterior else "95 % band (noise only)"
    words = {"true curve", "support points", "before adaptation", "after 1 step", "after 7 steps", band}
    assert words <= set(texts(figure))
    assert ("posterior draws" in texts(figure)) == posterior
    assert texts(figure).count("10 support points, MSE over the curve 1.00") == TASKS
    for view, ax in zip(given, figure.axes, strict=True):
        [vertices] = [path.vertices for path in ax.collections[0].get_paths()]
        at_left = vertices[vertices[:, 0] == -5][:, 1]
        np.testing.assert_allclose([at_left.min(), at_left.max()], [view.band.low[0, 0], view.band.high[0, 0]])
        lines = {line.get_label(): line.get_ydata() for line in ax.lines}
        np.testing.assert_array_equal(lines["true curve"], view.query_y[:, 0])
        np.testing.assert_array_equal(lines["after 1 step"], view.path[1][:, 0])
        assert len(ax.lines) == 5 + DRAWS * posterior


def test_adaptation_by_one_step_is_drawn_once():
    view = next(views(None))
    figure = Sinusoid().picture.draw([view._replace(path={k: view.path[k] for k in (0, 1)})])
    assert texts(figure).count("after 1 step") == 1 + 1, "in the legend, and the line's own"
