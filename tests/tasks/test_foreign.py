"""Foreign points are of other classes, are a function of the task's number, and for curves lie beyond the support."""

import numpy as np
import torch

from meta_exp.tasks import Episode, Examples, Sinusoid
from meta_exp.tasks.foreign import ClassFamily, beyond_support, draw_foreign
from meta_exp.tasks.images.episodes import ImageTasks
from meta_exp.tasks.stream import draw_tasks


class Letters:
    """Eleven classes of images, each filled with its class, so that an image tells it."""

    meta_batch, input_shape, outputs, classes = 2, (1, 2, 2), 3, True

    def __init__(self):
        images = torch.arange(11, dtype=torch.uint8)[:, None, None, None, None].expand(11, 6, 2, 2, 1).clone()
        self.sampler = ImageTasks(images, {"test": np.arange(11)}, ways=3, shots=1, queries=4)
        self.draw = self.sampler.draw

    def to(self, device):
        pass


def classes_of(x):
    return np.rint(255 * x.amax((-3, -2, -1)).numpy()).astype(int)


def test_foreign_images_are_of_other_classes_and_the_rest_is_marked():
    family = Letters()
    assert isinstance(family, ClassFamily)
    x, foreign = draw_foreign(family, "test", 0, 40)
    assert x.shape == (40, 12, 1, 2, 2)
    own = classes_of(draw_tasks(family, "test", 0, 40).support.x)
    for k in range(40):
        assert foreign[k].tolist() == [c not in own[k] for c in classes_of(x[k])]
    assert 0 < (~foreign).sum() < foreign.numel()  # three ways of eleven do meet


def test_a_task_keeps_its_foreign_images_whatever_the_batch():
    whole, part = draw_foreign(Letters(), "test", 0, 8), draw_foreign(Letters(), "test", 5, 8)
    assert torch.equal(whole.x[5:], part.x)
    assert torch.equal(whole.foreign[5:], part.foreign)


def test_curves_have_no_foreign_images():
    assert draw_foreign(Sinusoid(), "test", 0, 3) is None


def test_beyond_the_support_in_any_coordinate():
    support = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    query = torch.tensor([[0.5, 1.0], [1.0, 2.0], [0.5, 2.1], [-0.1, 1.0]])
    episode = Episode(Examples(support, support), Examples(query, query))
    assert beyond_support(episode).tolist() == [False, False, True, True]
