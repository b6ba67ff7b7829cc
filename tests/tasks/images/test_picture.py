"""The episode, from arrays: it names what it shows, and bars are the probabilities that it was given."""

import numpy as np
import pytest

from meta_exp.tasks import Omniglot
from meta_exp.tasks.picture import View


def view(ways, channels, kinds):
    rng = np.random.default_rng(0)
    images = [rng.uniform(size=(2 * ways, channels, 28, 28)) for _ in range(2)]
    labels = np.repeat(np.arange(ways), 2)
    probabilities = {kind: rng.dirichlet(np.ones(ways), 2 * ways) for kind in kinds}
    return View(images[0], labels, images[1], labels, {}, None, None, probabilities)


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


@pytest.mark.parametrize(("ways", "last", "queries"), [(3, "class C", 6), (6, "class F", 12), (30, "29", 20)])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_shown(ways, last, queries, channels):
    """Two rows of queries, and all classes of the support set."""
    given = view(ways, channels, ["map", "linearized"])
    figure = Omniglot("nowhere").picture.draw([given])
    for words in ("support: one image", "query: new images", last, "map", "linearized"):
        assert words in texts(figure)
    bars = [ax for ax in figure.findobj(lambda artist: hasattr(artist, "containers")) if ax.containers]
    assert len(bars) == queries
    heights = [[patch.get_height() for patch in container] for container in bars[0].containers]
    every = [given.probabilities[kind][0] for kind in ("map", "linearized")]
    if ways <= 10:
        np.testing.assert_allclose(heights, every)
    else:  # those of five classes, in their order
        assert [len(row) for row in heights] == [5, 5]
        assert np.isin(np.float32(heights), np.float32(every)).all()
    shown = [image.get_array() for ax in figure.axes for image in ax.images]
    assert len(shown) == ways + len(bars)
    first = given.support_x[0]
    np.testing.assert_array_equal(shown[0], np.moveaxis(first, 0, -1) if channels == 3 else 1 - first[0])


def test_right_and_wrong_are_told_by_the_last_predictive():
    given = view(2, 1, ["map", "sample"])
    sure = np.eye(2)[[0, 0, 0, 1]]
    figure = Omniglot("nowhere").picture.draw([given._replace(probabilities={"map": 1 - sure, "sample": sure})])
    assert texts(figure).count("A: right") == 2
    assert texts(figure).count("B: WRONG") == 1
    assert texts(figure).count("B: right") == 1
