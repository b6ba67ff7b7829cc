"""Images of one's own: unequal classes, what is measured, one treatment for training and production, and refusals."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from meta_exp.tasks import ImageFolder, Omniglot
from meta_exp.tasks.images.files import read_images
from meta_exp.tasks.measured import Measured
from meta_exp.tasks.picture import Pictured

SPLITS = {"train": 5, "validation": 2, "test": 3}  # classes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("META_EXP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    """Classes of 3, 4, 5, ... images in folders of splits: light paper, a dark mark whose colour tells the class."""
    rng, number = np.random.default_rng(0), 0
    for split, classes in SPLITS.items():
        for c in range(classes):
            folder = tmp_path / "root" / split / f"{split}{c}"
            folder.mkdir(parents=True)
            for i in range(3 + c + (split == "validation")):
                pixels = rng.integers(200, 256, (9, 9, 3), np.uint8)
                pixels[3:6, 3:6] = [20 * number, 10 * i, 30]
                Image.fromarray(pixels).save(folder / f"{i}.png")
            number += 1
    return tmp_path / "root"


def family(root, **settings):
    return ImageFolder(**{"root": str(root), "image_size": 9, "ways": 2, "queries": 2} | settings)


def files(root, split):
    return sorted((root / split).glob("*/*.png"))


def test_it_is_a_family_like_the_others(root):
    images = family(root, shots=1)
    assert isinstance(images, Measured)
    assert isinstance(images, Pictured)
    assert (images.input_shape, images.outputs, images.classes) == ((3, 9, 9), 2, True)
    assert {split: len(names) for split, names in images.class_names.items()} == SPLITS
    for split in SPLITS:
        support, query = images.draw(split, np.random.default_rng(0), 4)
        assert (support.x.shape, query.x.shape) == ((4, 2, 3, 9, 9), (4, 4, 3, 9, 9))
        drawn = images.draw_classes(split, np.random.default_rng(0), 4)
        assert torch.equal(drawn.episode.query.x, query.x)
        assert {images.store.class_names[c // 4] for c in drawn.classes.ravel()} <= set(images.class_names[split])


def test_settings_alone_read_nothing():
    images = ImageFolder("nowhere", channels=1, invert=True, mean=(0.2,), std=(0.3,))
    assert images.treatment == (True, (0.2,), (0.3,))
    assert (images.input_shape, images.outputs) == ((1, 84, 84), 5)
    assert images.picture.name == "episode"


def test_small_classes_are_left_out_in_one_line(root, caplog):
    images = family(root, shots=2)
    with caplog.at_level(logging.INFO):
        images.sampler  # noqa: B018
    assert images.class_names == {
        "train": ["train1", "train2", "train3", "train4"], "validation": ["validation0", "validation1"],
        "test": ["test1", "test2"],
    }  # fmt: skip
    [record] = [record for record in caplog.records if "left out" in record.message]
    assert record.message == (
        "classes with fewer than dataset.shots + dataset.queries = 4 images are left out: train0 (3), test0 (3)"
    )


@pytest.mark.parametrize("ask", [ImageFolder.measure, lambda images: images.sampler])
def test_too_few_classes_for_a_split_are_refused(root, cache, ask):
    message = (
        r"root: expected at least 2 classes \(dataset.ways\) of 5 images \(dataset.shots \+ dataset.queries\), got 1, "
    )
    with pytest.raises(ValueError, match=r"^split validation of .*" + message + "and 1 smaller ones"):
        ask(family(root, shots=3))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("queries", [1, 2])
def test_mean_and_deviation_are_those_of_all_training_images(root, channels, queries):
    """Of small classes too: they do not depend on how many images an episode takes."""
    measured = family(root, channels=channels, queries=queries, shots=2).measure()
    x = read_images(files(root, "train"), (channels, 9, 9), invert=measured["invert"])
    np.testing.assert_allclose(measured["mean"], x.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(measured["std"], x.std((0, 2, 3)), atol=1e-6)
    assert measured["invert"] == (channels == 1), "paper is light, and ink is to be high"


def test_what_is_given_is_not_measured(root):
    given = {"channels": 1, "invert": False, "mean": [0.25], "std": [0.5]}
    assert family(root, **given).measure() == {key: given[key] for key in ("invert", "mean", "std")}
    assert family(root, normalize=False).measure() == {"invert": False}
    plain = family(root, normalize=False).draw("train", np.random.default_rng(0), 8).query.x
    assert (0 <= plain.min() < 0.2) & (0.9 < plain.max() <= 1)


def test_training_and_production_see_the_same_pixels(root):
    """Bit by bit, whatever the treatment: of the images that an episode shows those that files are read to."""
    for settings in ({"channels": 1}, {"channels": 1, "invert": False}, {"channels": 3}, {"normalize": False}):
        images = family(root, image_size=6, **settings)
        settled = replace(images, **images.measure())
        shown = images.draw("test", np.random.default_rng(0), 20).query.x.flatten(0, 1)
        invert, mean, std = settled.treatment
        x = torch.from_numpy(read_images(files(root, "test"), images.input_shape, invert))
        x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        known = {image.numpy().tobytes() for image in x}
        assert {image.numpy().tobytes() for image in shown} <= known
        assert len(known) == len(files(root, "test"))


def test_an_image_and_its_negative_are_two_things(root, tmp_path):
    settled = family(root, channels=1).measure()
    page = Image.open(files(root, "test")[0]).convert("L")
    page.save(tmp_path / "page.png")
    ImageOps.invert(page).save(tmp_path / "negative.png")
    x, z = read_images([tmp_path / "page.png", tmp_path / "negative.png"], (1, 9, 9), settled["invert"])
    np.testing.assert_allclose(x, 1 - z, atol=1e-6)
    assert x[0, 4, 4] > 0.8 > 0.2 > x[0, 0].max(), "ink is high"


@pytest.mark.parametrize(("light", "inverted"), [(0, False), (2, False), (3, True), (5, True)])
def test_polarity_is_that_of_most_training_images(root, light, inverted):
    for place, folder in enumerate(sorted((root / "train").iterdir())):
        keep = list(folder.glob("*.png"))[:3]  # as many of each class
        for file in folder.glob("*.png"):
            if file not in keep:
                file.unlink()
            elif place >= light:
                ImageOps.invert(Image.open(file)).save(file)
    assert family(root, channels=1, shots=1).measure()["invert"] == inverted


def test_lists_and_seeds_split_too(root, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for folder in root.glob("*/*"):
        folder.rename(flat / folder.name)
    seeded = family(flat, shares=(0.4, 0.3, 0.3), shots=1)
    assert {split: len(names) for split, names in seeded.class_names.items()} == {
        "train": 4,
        "validation": 3,
        "test": 3,
    }
    assert len({name for names in seeded.class_names.values() for name in names}) == 10
    assert replace(seeded, split_seed=1).class_names != seeded.class_names
    lists = {"train": ["test2", "train1"], "val": ["train0", "train2"], "test": ["validation0", "train4"]}
    for split, names in lists.items():
        (flat / f"{split}.txt").write_text("\n".join(names))
    listed = family(flat, shots=1)
    assert listed.class_names == {
        "train": ["test2", "train1"], "validation": ["train0", "train2"], "test": ["train4", "validation0"],
    }  # fmt: skip


def test_a_changed_folder_is_read_anew_and_each_size_has_its_store(root, cache, caplog):
    first = family(root).store
    assert family(root).store.content == first.content
    assert family(root, image_size=5).store.file != first.file
    assert family(root, channels=1).store.file != first.file
    assert len(list(cache.glob("*.safetensors"))) == 3
    ImageOps.invert(Image.open(files(root, "train")[0])).save(files(root, "train")[0])
    (root / "train" / "new").mkdir()
    Image.new("RGB", (9, 9)).save(root / "train" / "new" / "0.png")
    changed = family(root).store
    assert "has another stamp" in caplog.text
    assert (changed.file, changed.content != first.content) == (first.file, True)
    assert "new" in changed.class_names


def test_a_faulty_image_is_named_and_nothing_is_left(root, cache):
    bad = root / "test" / "test1" / "1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"test1/1.png: expected an image, got ") as refusal:
        family(root).measure()
    assert "\n" not in str(refusal.value)
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


def test_augmented_in_training_alone(root):
    plain, augmented = family(root), family(root, augment=True)
    for split, changed in (("train", True), ("test", False)):
        one, other = (images.draw(split, np.random.default_rng(0), 1).support.x for images in (plain, augmented))
        assert torch.equal(one, other) != changed


def test_drawings_of_omniglot_are_those_of_omniglot(drawings, omniglot_root):
    """A class folder of the unpacked data set, read as one's own, makes the pixels of dataset=omniglot."""
    own = ImageFolder(str(drawings), image_size=28, channels=1, normalize=False, ways=2, shares=(0.5, 0.25, 0.25))
    assert own.measure() == {"invert": True}
    theirs = Omniglot(str(omniglot_root), split_by="alphabet")
    for name in ("character03", "character26"):
        index = theirs.class_names["test"].index(f"Keble/{name}")
        expected = theirs.store.images(theirs.split_classes["test"][index])
        np.testing.assert_array_equal(255 - own.store.images(own.store.class_names.index(name)), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "dataset.image_size: expected 1 to 1024 pixels, got 0"),
        ({"channels": 2}, "dataset.channels: expected 1 or 3, got 2"),
        ({"channels": 3, "invert": True}, "dataset.invert: expected auto, or of one channel true or false, got True"),
        ({"invert": "yes"}, "dataset.invert: expected auto, or of one channel true or false, got yes"),
        ({"splits": "/etc"}, "dataset.splits: expected a folder below dataset.root, got /etc"),
        ({"splits": "a/../.."}, "dataset.splits: expected a folder below dataset.root, got a/../.."),
        ({"mean": (0.5,) * 3}, "dataset.mean: expected mean and std, or neither, got one of them"),
        ({"mean": (0.5,), "std": (1.0,)}, "dataset.mean: expected 3 numbers from 0 to 1, got (0.5,)"),
        (
            {"mean": (0.5,) * 3, "std": (0.0,) * 3},
            "dataset.std: expected 3 numbers from 1e-06 to 1, got (0.0, 0.0, 0.0)",
        ),
        ({"ways": 1}, "dataset.ways: expected at least 2, got 1"),
        ({"shares": (1.0,)}, "dataset.shares: expected three shares"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        family("nowhere", **settings)
    assert str(refusal.value).startswith(message)
