"""Class-indexed episodes: their invariants, the law of their draws, rotations, devices and refusals."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from meta_exp.tasks.images.episodes import ImageTasks, check_sizes, distinct

CLASSES, IMAGES, SIDE = 6, 5, 3
WAYS, SHOTS, QUERIES, TASKS = 4, 2, 3, 50
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def store(classes: int = CLASSES, images: int = IMAGES) -> Tensor:
    """Images whose corners tell the class, the image, and which way is up."""
    pixels = torch.zeros(classes, images, SIDE, SIDE, 1, dtype=torch.uint8)
    pixels[:, :, 0, 0, 0] = torch.arange(classes)[:, None]
    pixels[:, :, 0, 2, 0] = torch.arange(images)
    pixels[:, :, 2, 2, 0] = 255
    return pixels.flatten(0, 1)


def sampler(**sizes: int) -> ImageTasks:
    sizes = {"ways": WAYS, "shots": SHOTS, "queries": QUERIES} | sizes
    classes = {split: np.arange(CLASSES) for split in ("train", "test")}
    return ImageTasks(store(), [IMAGES] * CLASSES, classes, rotated=("train",), **sizes)


def upright(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Read class, image and quarter turns off images [..., 1, SIDE, SIDE]."""
    turned_back = torch.stack([x.rot90(-turn, (-2, -1)) for turn in range(4)])
    matches = turned_back[..., 0, 2, 2] == 1
    assert (matches.sum(0) == 1).all()
    turns = matches.int().argmax(0)
    pixels = turned_back.gather(0, turns[None, ..., None, None, None].expand(1, *x.shape))[0].mul(255).round().long()
    return pixels[..., 0, 0, 0], pixels[..., 0, 0, 2], turns


@pytest.mark.parametrize("split", ["train", "test"])
def test_episodes_have_the_promised_shapes_labels_and_distinct_contents(split: str) -> None:
    support, query = sampler().draw(split, np.random.default_rng(0), TASKS)
    x, y = torch.cat([support.x, query.x], dim=1), torch.cat([support.y, query.y], dim=1)
    assert support.x.shape == (TASKS, WAYS * SHOTS, 1, SIDE, SIDE)
    assert support.x.dtype == torch.float32
    assert query.x.shape == (TASKS, WAYS * QUERIES, 1, SIDE, SIDE)
    assert query.y.dtype == torch.int64
    assert support.y.tolist() == [[way for way in range(WAYS) for _ in range(SHOTS)]] * TASKS
    assert query.y.tolist() == [[way for way in range(WAYS) for _ in range(QUERIES)]] * TASKS
    classes, images, turns = upright(x)
    for task in range(TASKS):
        index = 4 * classes[task] + turns[task]
        seen = [set(index[y[task] == way].tolist()) for way in range(WAYS)]
        assert all(len(way) == 1 for way in seen), "a label names one class"
        assert len(set.union(*seen)) == WAYS, "classes are distinct"
        shown = set((IMAGES * y[task] + images[task]).tolist())
        assert len(shown) == WAYS * (SHOTS + QUERIES), "no image is shown twice, in support or query"


def test_rotations_are_counterclockwise_quarters_and_only_where_asked() -> None:
    tasks = sampler()
    for split, turns in (("train", {0, 1, 2, 3}), ("test", {0})):
        choice = tasks.choose(split, np.random.default_rng(1), TASKS)
        x = tasks.draw(split, np.random.default_rng(1), TASKS).support.x.unflatten(1, (WAYS, SHOTS))
        classes, images, turned = upright(x)
        assert set(turned.unique().tolist()) == turns
        assert (classes.numpy() == choice.classes[..., None]).all()
        assert (images.numpy() == choice.images[..., :SHOTS]).all()
        assert (turned.numpy() == choice.turns[..., None]).all()


@pytest.mark.parametrize("rotated", [(), ("test",)])
def test_pixels_and_channels_are_kept(rotated: tuple[str, ...]) -> None:
    images = torch.randint(256, (3, 4, 4, 4, 3), dtype=torch.uint8)
    tasks = ImageTasks(
        images.flatten(0, 1), [4] * 3, {"test": np.arange(3)}, ways=3, shots=1, queries=3, rotated=rotated
    )
    choice = tasks.choose("test", np.random.default_rng(0), 6)
    x = tasks.draw("test", np.random.default_rng(0), 6).query.x
    assert x.is_contiguous()
    for task, way, query in np.ndindex(6, 3, 3):
        image = images[choice.classes[task, way], choice.images[task, way, 1 + query]]
        expected = image.rot90(int(choice.turns[task, way])).movedim(-1, 0) * (1 / 255)
        assert torch.equal(x[task, 3 * way + query], expected)


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_is_a_function_of_its_key_on_any_device(device: str) -> None:
    tasks = sampler()
    first, other = (tasks.draw("train", np.random.default_rng(key), TASKS) for key in (3, 4))
    tasks.to(torch.device(device))
    again = tasks.draw("train", np.random.default_rng(3), TASKS)
    assert not torch.equal(first.query.x, other.query.x)
    for one, same in zip((*first.support, *first.query), (*again.support, *again.query), strict=True):
        assert same.device.type == device
        assert torch.equal(one, same.cpu())


@pytest.mark.parametrize(("n", "k"), [(5, 3), (4, 4), (3, 1)])
def test_distinct_draws_each_ordered_choice_equally_often(n: int, k: int) -> None:
    rows = 60_000
    draws = distinct(np.random.default_rng(0), rows, n, k)
    choices, counts = np.unique(draws, axis=0, return_counts=True)
    number = np.prod(np.arange(n - k + 1, n + 1))
    assert len(choices) == number
    assert all(len(set(choice)) == k for choice in choices.tolist())
    assert counts.std() < 1.5 * np.sqrt(rows / number), "no more spread than chance"


def test_draws_below_a_number_for_each_row_are_those_below_one_number() -> None:
    one, each = (distinct(np.random.default_rng(0), 500, n, 4) for n in (9, np.full(500, 9)))
    assert (one == each).all()
    ragged = distinct(np.random.default_rng(0), 3000, np.resize([4, 7], 3000), 4)
    assert all(len(set(row)) == 4 for row in ragged.tolist())
    assert (ragged[::2].max(), ragged[1::2].max()) == (3, 6)


@pytest.mark.parametrize("split", ["train", "test"])
def test_classes_of_unequal_size_show_all_their_images_equally_often(split: str) -> None:
    """A class has four turns in train, and each of its images appears as often as its others."""
    counts = [5, 9, 6]
    pixels = torch.cat([store(3, count)[count * place : count * (place + 1)] for place, count in enumerate(counts)])
    classes = {"train": np.arange(3), "test": np.array([0, 1, 2])}
    tasks = ImageTasks(pixels, counts, classes, ways=3, shots=2, queries=3, rotated=("train",))
    support, query = tasks.draw(split, np.random.default_rng(0), 2000)
    x = torch.cat([support.x.unflatten(1, (3, 2)), query.x.unflatten(1, (3, 3))], 2)
    which, images, _ = upright(x)
    for place, count in enumerate(counts):
        shown = np.bincount(images[which == place].numpy(), minlength=count)
        assert len(shown) == count
        assert shown.std() < 3 * np.sqrt(shown.mean()), "no more spread than chance"
    with pytest.raises(ValueError, match="at most 5, the images of a class, got 6"):
        ImageTasks(pixels, counts, classes, ways=3, shots=2, queries=4)


def test_inverted_images_are_negatives_also_where_they_are_turned() -> None:
    plain, inverted = (ImageTasks(store(), [IMAGES] * CLASSES, {"train": np.arange(CLASSES)}, 4, 2, 3,
                                  rotated=("train",), inverted=value) for value in (False, True))  # fmt: skip
    x, z = (tasks.draw("train", np.random.default_rng(0), TASKS).query.x for tasks in (plain, inverted))
    torch.testing.assert_close(z, 1 - x)


def test_classes_images_and_labels_are_drawn_uniformly() -> None:
    choice = sampler().choose("train", np.random.default_rng(0), 20_000)
    index = 4 * choice.classes + choice.turns
    labels_by_class = np.stack([np.bincount(index[:, way], minlength=4 * CLASSES) for way in range(WAYS)])
    places = choice.images.reshape(-1, SHOTS + QUERIES).T
    images_by_place = np.stack([np.bincount(place, minlength=IMAGES) for place in places])
    for counts in (labels_by_class, images_by_place):
        chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert chi_squared < counts.size + 5 * np.sqrt(2 * counts.size)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"ways": 1}, "dataset.ways: expected at least 2, got 1"),
        ({"shots": 0}, "dataset.shots: expected at least 1, got 0"),
        ({"queries": 0}, "dataset.queries: expected at least 1, got 0"),
        ({"ways": 7}, "dataset.ways: expected at most 6, the classes of split test, got 7"),
        ({"shots": 3}, "shots + dataset.queries: expected at most 5, the images of a class, got 6"),
    ],
)
def test_sizes_out_of_range_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        sampler(**sizes)


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match=r"dataset.meta_batch: expected at least 1, got 0"):
        check_sizes(ways=2, shots=1, queries=1, meta_batch=0)
    with pytest.raises(ValueError, match="split: expected one of train, test, got valid"):
        sampler().draw("valid", np.random.default_rng(0), 1)
    with pytest.raises(ValueError, match="rotations: expected square images, got 2 x 3"):
        ImageTasks(
            torch.zeros(4, 2, 3, 1, dtype=torch.uint8), [2, 2], {"train": np.arange(2)}, 2, 1, 1, rotated=("train",)
        )


def test_a_split_shows_its_own_classes_only() -> None:
    own = {"train": np.array([0, 2, 5]), "test": np.array([1, 3])}
    tasks = ImageTasks(store(), [IMAGES] * CLASSES, own, ways=2, shots=1, queries=1, rotated=("train",))
    for split, classes in own.items():
        x = tasks.draw(split, np.random.default_rng(0), TASKS).query.x
        assert set(upright(x)[0].unique().tolist()) == set(classes)


def test_channels_are_normalised_after_scaling() -> None:
    images = torch.randint(256, (6, 4, 4, 3), dtype=torch.uint8)
    sizes = {"counts": [2] * 3, "classes": {"test": np.arange(3)}, "ways": 3, "shots": 1, "queries": 1}
    plain, normal = ImageTasks(images, **sizes), ImageTasks(images, **sizes, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    x, z = (tasks.draw("test", np.random.default_rng(0), 2).query.x for tasks in (plain, normal))
    torch.testing.assert_close(z[:, :, 1], (x[:, :, 1] - 0.2) / 2)
    torch.testing.assert_close(z[:, :, 2], (x[:, :, 2] - 0.3) / 4)


def test_augmentation_is_for_its_splits_and_a_function_of_the_key() -> None:
    images = torch.randint(256, (12, 16, 16, 3), dtype=torch.uint8)
    classes = {split: np.arange(3) for split in ("train", "test")}
    plain, augmented = (ImageTasks(images, [4] * 3, classes, 3, 1, 2, augmented=splits) for splits in ((), ("train",)))
    one, other, again = (tasks.draw("train", np.random.default_rng(0), 2) for tasks in (plain, augmented, augmented))
    assert torch.equal(one.query.y, other.query.y)
    assert (one.query.x != other.query.x).flatten(2).any(-1).all(), "each image is changed"
    assert torch.equal(other.query.x, again.query.x)
    one, other = (tasks.draw("test", np.random.default_rng(0), 2) for tasks in (plain, augmented))
    assert torch.equal(one.query.x, other.query.x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("free", "where"), [(10**9, "cuda"), (100, "cpu")])
def test_images_move_to_a_gpu_where_they_fit(free: int, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    tasks = sampler()
    expected = tasks.draw("train", np.random.default_rng(0), TASKS)
    tasks.to("cuda")
    assert tasks.images.device.type == where
    episode = tasks.draw("train", np.random.default_rng(0), TASKS)
    assert episode.query.x.device.type == "cuda"
    assert torch.equal(episode.query.x.cpu(), expected.query.x)
