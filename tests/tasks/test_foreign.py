"""Foreign points are of other classes, are a function of the task's number, and for curves lie beyond the support."""

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from meta_exp.tasks import Episode, Examples, Sinusoid
from meta_exp.tasks.foreign import ClassFamily, beyond_support, draw_with_foreign
from meta_exp.tasks.images.episodes import ImageTasks
from meta_exp.tasks.stream import draw_tasks


class Letters:
    """Eleven classes of images, each filled with its class, so that an image tells it."""

    meta_batch, input_shape, outputs, classes = 2, (1, 2, 2), 3, True

    def __init__(self):
        images = (
            torch.arange(11, dtype=torch.uint8).repeat_interleave(6)[:, None, None, None].expand(66, 2, 2, 1).clone()
        )
        sampler = ImageTasks(images, [6] * 11, {"test": np.arange(11)}, ways=3, shots=1, queries=4)
        self.draw, self.draw_classes = sampler.draw, sampler.draw_classes

    def to(self, device):
        pass


def classes_of(x):
    return np.rint(255 * x.amax((-3, -2, -1)).numpy()).astype(int)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True))


def test_foreign_images_are_of_other_classes_and_the_rest_is_marked():
    family = Letters()
    assert isinstance(family, ClassFamily)
    episodes, (x, foreign) = draw_with_foreign(family, "test", 0, 40)
    assert x.shape == (40, 12, 1, 2, 2)
    assert same(episodes, draw_tasks(family, "test", 0, 40))
    own = classes_of(episodes.support.x)
    for k in range(40):
        assert foreign[k].tolist() == [c not in own[k] for c in classes_of(x[k])]
    assert 0 < (~foreign).sum() < foreign.numel()  # three ways of eleven do meet


def test_a_task_keeps_its_foreign_images_whatever_the_batch():
    (_, whole), (_, part) = (draw_with_foreign(Letters(), "test", start, 8) for start in (0, 5))
    assert torch.equal(whole.x[5:], part.x)
    assert torch.equal(whole.foreign[5:], part.foreign)


def test_curves_have_no_foreign_images():
    episodes, foreign = draw_with_foreign(Sinusoid(), "test", 0, 3)
    assert foreign is None
    assert same(episodes, draw_tasks(Sinusoid(), "test", 0, 3))


def test_the_draws_are_those_of_ever():
    """Of the version that found the classes by drawing twice."""
    _, (x, foreign) = draw_with_foreign(Letters(), "test", 7, 10)
    assert classes_of(x[:, ::4]).tolist() == [[6, 1, 2], [3, 9, 10], [2, 0, 7]]
    assert foreign[:, ::4].tolist() == [[True, True, False], [True, False, False], [True, True, True]]


def test_beyond_the_support_in_any_coordinate():
    support = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    query = torch.tensor([[0.5, 1.0], [1.0, 2.0], [0.5, 2.1], [-0.1, 1.0]])
    episode = Episode(Examples(support, support), Examples(query, query))
    assert beyond_support(episode).tolist() == [False, False, True, True]
