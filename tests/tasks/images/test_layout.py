"""Layouts that people have: which classes and splits are found in each, and what is refused by name."""

import pickle

import numpy as np
import pytest
from PIL import Image

from meta_exp.tasks.images.layout import find_lists, folder_source, read_lists

SIZE = (4, 4, 3)


def colour(*place):
    """An image whose colour tells the class and the image."""
    return Image.new("RGB", (6, 6), (*place, 7))


def make(root, classes, images=3, suffix=".png"):
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(images):
            colour(40 * c, i).save(root / name / f"{i}{suffix}")


def found(root, **options):
    """Class names and splits, once the images have been seen to be those of their classes."""
    source = folder_source(root, SIZE, **options)
    counts, names, splits = source.list_classes()
    pixels = list(source.convert())
    assert [len(images) for images in pixels] == list(counts)
    assert all(images.shape[1:] == SIZE for images in pixels)
    return dict(zip(names, splits, strict=True)), dict(zip(names, pixels, strict=True))


def test_sub_folders_are_classes(tmp_path):
    make(tmp_path, ["b", "a"])
    (tmp_path / "README.md").touch()
    (tmp_path / ".git").mkdir()
    splits, pixels = found(tmp_path)
    assert splits == {"a": "all", "b": "all"}
    np.testing.assert_array_equal(pixels["a"][:, 0, 0], [[40, i, 7] for i in range(3)])


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_folders_of_splits(tmp_path, validation):
    for name in ("train", validation, "test"):
        make(tmp_path / name, [f"{name}_n01", f"{name}_n02"])
    splits, _ = found(tmp_path)
    assert splits == {
        "train_n01": "train", "train_n02": "train", f"{validation}_n01": "validation",
        f"{validation}_n02": "validation", "test_n01": "test", "test_n02": "test",
    }  # fmt: skip


def test_a_class_is_a_folder_without_folders_and_bears_its_path(tmp_path):
    """Omniglot as it unpacks: sets of alphabets of characters."""
    make(tmp_path / "images_background" / "Latin", ["character01", "character02"])
    make(tmp_path / "images_evaluation" / "Angelic", ["character01"])
    splits, _ = found(tmp_path)
    assert list(splits) == [
        "images_background/Latin/character01", "images_background/Latin/character02",
        "images_evaluation/Angelic/character01",
    ]  # fmt: skip


def write_lists(folder, lists, suffix=".txt", header="", line="{}"):
    folder.mkdir(parents=True, exist_ok=True)
    for split, names in lists.items():
        (folder / f"{split}{suffix}").write_text(header + "".join(line.format(name) + "\n" for name in names))


LISTS = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
PLACES = {"root": ".", "splits": "splits", "CIFAR-FS": "splits/bertinetto"}
FORMS = {
    "text": {},
    "CSV of labels": {"suffix": ".csv", "header": "filename,label\n", "line": "x.png,{0}\ny.png,{0}"},
    "CSV of classes": {"suffix": ".csv", "header": "Class\n"},
    "CSV of names": {"suffix": ".csv"},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FORMS)
def test_lists_of_classes(tmp_path, place, form):
    make(tmp_path if place == "root" else tmp_path / "data", "abcd")
    write_lists(tmp_path / PLACES[place], LISTS, **FORMS[form])
    splits, _ = found(tmp_path)
    assert list(splits) == ["a", "b", "c", "d"]
    lists = read_lists(find_lists(tmp_path, None), list(splits))
    assert lists == {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}


def test_of_several_lists_one_is_named(tmp_path):
    make(tmp_path / "data", "abcd")
    for name in ("bertinetto", "mine"):
        write_lists(tmp_path / "splits" / name, LISTS)
    with pytest.raises(ValueError, match=r"expected lists of classes in one place, got splits/bertinetto, splits/mine"):
        found(tmp_path)
    assert find_lists(tmp_path, "splits/mine")["train"] == tmp_path / "splits" / "mine" / "train.txt"
    assert len(found(tmp_path, lists="splits/mine")[0]) == 4


def write_pickles(root, names=("train", "val", "test"), **changes):
    for number, split in enumerate(names):
        images = np.arange(5, dtype=np.uint8)[:, None, None, None] + np.full((5, 4, 4, 3), 10 * number, np.uint8)
        content = {"image_data": images, "class_dict": {f"{split}_b": [1, 3], f"{split}_a": np.array([0, 2, 4])}}
        (root / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(content | changes))


def test_pickles_of_images(tmp_path):
    write_pickles(tmp_path)
    splits, pixels = found(tmp_path)
    assert splits == {
        "train_a": "train", "train_b": "train", "val_a": "validation", "val_b": "validation", "test_a": "test",
        "test_b": "test",
    }  # fmt: skip
    assert pixels["val_a"][:, 0, 0, 0].tolist() == [10, 12, 14]
    assert pixels["test_b"][:, 3, 3, 2].tolist() == [21, 23]


class Code:
    def __reduce__(self):
        import os

        return os.mkdir, ("ran",)


WRONG_PICKLES = {
    "code": ({"more": Code()}, "one that would run posix.mkdir, which was refused"),
    "no classes": ({"class_dict": None}, "expected a dict of image_data and class_dict, got dict"),
    "floats": ({"image_data": np.zeros((5, 4, 4, 3))}, r"expected image_data of uint8 .*, got float64 \[5, 4, 4, 3\]"),
    "grey": ({"image_data": np.zeros((5, 4, 4), np.uint8)}, r"expected image_data of uint8 .*, got uint8 \[5, 4, 4\]"),
    "beyond": ({"class_dict": {"a": [0, 5]}}, "class a: expected places among its 5 images, got others"),
    "before": ({"class_dict": {"a": [-1]}}, "class a: expected places among its 5 images, got others"),
    "fractions": ({"class_dict": {"a": [0.5]}}, "class a: expected places among its 5 images, got others"),
    "words": ({"class_dict": {"a": ["x"]}}, "class a: expected places among its 5 images, got others"),
    "nothing": ({"class_dict": {"a": 3}}, "class a: expected places among its 5 images, got others"),
    "two splits": ({"class_dict": {"a": [0]}}, "class a: expected one split, got train and validation"),
}


@pytest.mark.parametrize("case", WRONG_PICKLES)
def test_a_wrong_pickle_is_refused_and_runs_nothing(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    changes, message = WRONG_PICKLES[case]
    write_pickles(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        found(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_pickle_is_named(tmp_path):
    write_pickles(tmp_path, ("train", "test"))
    with pytest.raises(
        ValueError, match=r"expected one pickle of validation, as mini-imagenet-cache-valid.pkl, got none"
    ):
        found(tmp_path)


def add_file(name):
    def add(root):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("text")

    return add


def nest(root):
    folder = root.joinpath("c", *"123456789")
    folder.mkdir(parents=True)


WRONG = {
    "notes in a class": (add_file("a/notes.txt"), r"a/notes.txt: expected an image \(.png, .*\), got something else"),
    "an image beside classes": (add_file("x.JPG"), "x.JPG: expected no image beside folders, got one; move it into"),
    "an image that is none": (add_file("c/d/x.png"), "x.png: expected an image, got cannot identify"),
    "splits and classes": (lambda root: (root / "train").mkdir(), r"expected train, validation \(or val\) and test"),
    "folders without end": (nest, "expected at most 8 folders in one another, got more"),
    "a broken link": (lambda root: (root / "a" / "x.png").symlink_to("nowhere"), "got a link to nothing"),
    "a list of unknown names": (
        lambda root: write_lists(root, {"train": ["a"], "val": ["b"], "test": ["z", "y"]}),
        "test.txt: expected names of classes, which are folders, got no folder z, y",
    ),
    "a class in two lists": (
        lambda root: write_lists(root, {"train": ["a"], "val": ["b"], "test": ["a"]}),
        "class a: expected one split, got train and test",
    ),
    "an empty list": (
        lambda root: write_lists(root, {"train": ["a"], "val": [], "test": ["b"]}),
        "val.txt: expected the names of some classes, got none",
    ),
    "a list of other columns": (
        lambda root: write_lists(root, {"train": ["1,2"], "val": ["3,4"], "test": ["5,6"]}, ".csv", "x,y\n"),
        "train.csv: expected a column label or class, got the columns x, y",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_would_be_lost_or_mistaken_is_refused(tmp_path, case):
    make(tmp_path, "ab")
    change, message = WRONG[case]
    change(tmp_path)

    def read():
        splits, _ = found(tmp_path)
        read_lists(find_lists(tmp_path, None), list(splits))

    with pytest.raises(ValueError, match=message) as refusal:
        read()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("make_root", "message"),
    [
        (
            lambda root: None,
            "dataset.root: expected a folder of images, got nothing at .*; name it by dataset.root=FOLDER",
        ),
        (lambda root: root.touch(), "dataset.root: expected a folder of images, got a file at"),
        (lambda root: root.mkdir(), "dataset.root: expected a folder with a sub-folder a class, got none in"),
        (lambda root: (root / "a").mkdir(parents=True), "dataset.root: expected images in its folders, got none in"),
        (lambda root: make(root, ["train", "val", "test"]), "train: expected a sub-folder a class, got none"),
    ],
)
def test_no_classes_at_all(tmp_path, make_root, message):
    make_root(tmp_path / "root")
    with pytest.raises(ValueError, match=message):
        found(tmp_path / "root")


def test_a_class_in_two_folders_of_splits_is_refused(tmp_path):
    for name, classes in (("train", "ab"), ("val", "c"), ("test", "bd")):
        make(tmp_path / name, classes)
    with pytest.raises(ValueError, match="class b: expected one split, got train and test"):
        found(tmp_path)


def test_a_folder_of_lists_that_has_none_is_refused(tmp_path):
    make(tmp_path, "ab")
    for name, message in (("nowhere", "expected a folder below"), ("a", "expected lists as train.txt, val.txt")):
        with pytest.raises(ValueError, match=f"dataset.splits: {message}"):
            found(tmp_path, lists=name)
