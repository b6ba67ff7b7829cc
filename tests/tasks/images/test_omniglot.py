"""Omniglot: the source's forms and faults on a small alphabet soup, and the real drawings where they are at hand."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from meta_exp.tasks.images import omniglot
from meta_exp.tasks.images.omniglot import Omniglot, character_names, split_groups

SOUP = {"images_background": {"Aa": 2, "B-b_(c)": 3}, "images_evaluation": {"Dd": 2}}
SETS = list(SOUP)
SPLIT_NAMES = ("learn2learn", "maml", "lake")
Tree = dict[str, bytes]


def png(pixels: np.ndarray, mode: str = "1") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "png")
    return stream.getvalue()


@pytest.fixture(scope="module")
def soup() -> dict[str, Tree]:
    """The files of each set, by name."""
    rng = np.random.default_rng(0)
    trees: dict[str, Tree] = {name: {} for name in SETS}
    for name, alphabets in SOUP.items():
        for character in (f"{a}/character{i:02}" for a, count in alphabets.items() for i in range(1, count + 1)):
            for drawing in range(1, 21):
                pixels = np.where(rng.random((105, 105)) < 0.9, 255, 0).astype(np.uint8)
                trees[name][f"{name}/{character}/0001_{drawing:02}.png"] = png(pixels)
    return trees


@pytest.fixture
def root(soup: dict[str, Tree], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with the small set as zip files, and a cache of its own."""
    monkeypatch.setattr(omniglot, "ALPHABETS", SOUP)
    monkeypatch.setattr(omniglot, "SPLITS", {"train": 3, "validation": 2, "test": 2})
    monkeypatch.setenv("META_EXP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "omniglot-py").mkdir()
    for name in SETS:
        pack(tmp_path, name, soup[name])
    return tmp_path


def pack(root: Path, name: str, tree: Tree) -> Path:
    file = root / "omniglot-py" / f"{name}.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir(name)
        for clutter in (f"__MACOSX/{name}/Aa/character01/._0001_01.png", f"{name}/Dd/character01/._0001_01.png"):
            archive.writestr(clutter, b"no drawing")
        for path, content in tree.items():
            archive.writestr(path, content)
    return file


def read(root: Path) -> np.ndarray:
    """The drawings of each class, [classes, 20, 28, 28, 1]."""
    store = Omniglot(str(root)).store
    return store.pixels.reshape(len(store.counts), -1, *store.pixels.shape[1:])


def cache_files(root: Path) -> list[str]:
    return sorted(file.name for file in (root / "cache").iterdir() if file.suffix != ".lock")


def shrunk(content: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(content)).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
    return 255 - np.asarray(image)


def test_classes_stand_in_order_with_their_drawings(root: Path, soup: dict[str, Tree]) -> None:
    pixels = read(root)
    assert pixels.shape == (7, 20, 28, 28, 1)
    assert pixels.dtype == np.uint8
    for index, name in enumerate(character_names()):
        tree = soup[SETS[0]] | soup[SETS[1]]
        drawings = [tree[path] for path in sorted(tree) if f"/{name}/" in path]
        np.testing.assert_array_equal(pixels[index, ..., 0], np.stack([shrunk(content) for content in drawings]))


def test_folders_hold_what_zip_files_hold(root: Path) -> None:
    from_zip = np.array(read(root))
    for name in SETS:
        file = root / "omniglot-py" / f"{name}.zip"
        with zipfile.ZipFile(file) as archive:
            archive.extractall(root / "omniglot-py")
        file.unlink()
    np.testing.assert_array_equal(read(root), from_zip)


def test_the_data_set_offers_what_a_learner_needs(root: Path) -> None:
    family = Omniglot(str(root), ways=2, shots=3, queries=4)
    assert (family.input_shape, family.outputs, family.classes, family.meta_batch) == ((1, 28, 28), 2, True, 32)
    support, query = family.draw("train", np.random.default_rng(0), 5)
    assert support.x.shape == (5, 6, 1, 28, 28)
    assert query.y.shape == (5, 8)
    family.to("cpu")
    assert torch.equal(family.draw("train", np.random.default_rng(0), 5).query.x, query.x)


def test_rotations_make_classes_for_training_only(root: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset.ways: expected at most 3, the classes of split train, got 4"):
        Omniglot(str(root), ways=4, rotations=False).to("cpu")
    with pytest.raises(ValueError, match=r"dataset.ways: expected at most 2, the classes of split validation, got 3"):
        Omniglot(str(root), ways=3).to("cpu")
    sampler = Omniglot(str(root), ways=2).sampler
    for split, turns in (("train", {0, 1, 2, 3}), ("validation", {0}), ("test", {0})):
        assert set(sampler.choose(split, np.random.default_rng(0), 100).turns.ravel()) == turns


def test_a_changed_source_is_converted_anew(
    root: Path, soup: dict[str, Tree], caplog: pytest.LogCaptureFixture
) -> None:
    before = np.array(read(root))
    tree = dict(soup[SETS[1]])
    first = min(tree)
    tree[first] = png(np.zeros((105, 105), np.uint8))
    pack(root, SETS[1], tree)
    after = read(root)
    [record] = caplog.records
    assert record.getMessage().endswith("is stale: it has another stamp")
    assert len(cache_files(root)) == 1
    assert (after[5, 0] == 255).all()
    assert (after != before).any(axis=(2, 3, 4)).sum() == 1


def test_a_file_changed_in_a_folder_is_noticed(root: Path) -> None:
    for name in SETS:
        file = root / "omniglot-py" / f"{name}.zip"
        with zipfile.ZipFile(file) as archive:
            archive.extractall(root / "omniglot-py")
        file.unlink()
    before = np.array(read(root))
    drawing = root / "omniglot-py/images_evaluation/Dd/character01/0001_01.png"
    drawing.write_bytes(png(np.zeros((105, 105), np.uint8)))
    assert (read(root) != before).any(axis=(2, 3, 4)).sum() == 1


def test_the_store_names_classes_and_published_sets(root: Path) -> None:
    store = Omniglot(str(root)).store
    assert store.class_names == character_names()
    assert store.split_names == ["images_background"] * 5 + ["images_evaluation"] * 2
    store.verify()


def test_a_second_reading_opens_the_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = np.array(read(root))
    monkeypatch.setattr(omniglot, "convert", None)
    np.testing.assert_array_equal(read(root), first)


# Faults of the source: each names the file and what is wrong in it


def without(tree: Tree, part: str) -> Tree:
    return {path: content for path, content in tree.items() if part not in path}


FAULTS: dict[str, tuple[Callable[[Tree], Tree], str]] = {
    "no alphabet": (lambda tree: without(tree, "/Aa/"), "got no alphabet Aa; fetch it again"),
    "no character": (lambda tree: without(tree, "/B-b_(c)/character02/"), r"got no character B-b_\(c\)/character02"),
    "no drawing": (lambda tree: without(tree, "/Aa/character01/0001_07"), r"got uneven Aa/character01 \(19\)"),
    "more": (lambda tree: tree | {"images_background/Zz/character01/1_01.png": b""}, "got unknown Zz/character01"),
    "nothing": (lambda tree: {}, r"2 alphabets with 5 characters and 20 drawings of each, got no alphabet Aa, B-b_\("),
    "size": (
        lambda tree: tree | {"images_background/Aa/character02/0001_03.png": png(np.zeros((28, 105), np.uint8))},
        "expected 105 x 105 pixels of one bit in images_background/Aa/character02/0001_03.png, got 105 x 28 of mode 1",
    ),
    "mode": (
        lambda tree: (
            tree | {"images_background/Aa/character02/0001_03.png": png(np.zeros((105, 105), np.uint8), "RGB")}
        ),
        "expected 105 x 105 pixels of one bit in .*0001_03.png, got 105 x 105 of mode RGB",
    ),
    "no image": (
        lambda tree: tree | {"images_background/Aa/character02/0001_03.png": b"<html>"},
        "expected a drawing in images_background/Aa/character02/0001_03.png, got cannot identify",
    ),
    "a large drawing": (
        lambda tree: tree | {"images_background/Aa/character02/0001_03.png": bytes(2**22)},
        r"expected drawings of at most 65536 bytes, got images_background/.*0001_03.png \(4194304 bytes\)",
    ),
    "another format": (
        lambda tree: tree | {"images_background/Aa/character02/0001_03.png": b"%!PS-Adobe-3.0 EPSF-3.0\n"},
        "expected a drawing in images_background/Aa/character02/0001_03.png, got cannot identify",
    ),
    "half an image": (
        lambda tree: tree | {(name := min(tree)): tree[name][:200]},
        "expected a drawing in images_background/Aa/character01/0001_01.png, got ",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_set_is_refused_by_name(fault: str, root: Path, soup: dict[str, Tree]) -> None:
    change, message = FAULTS[fault]
    file = pack(root, SETS[0], change(soup[SETS[0]]))
    with pytest.raises(ValueError, match=message) as caught:
        read(root)
    assert str(caught.value).startswith(f"{file}: expected ")
    assert not cache_files(root)
    assert not list(root.rglob("*.tmp"))


def test_exchanged_sets_are_refused(root: Path) -> None:
    background, evaluation = (root / "omniglot-py" / f"{name}.zip" for name in SETS)
    evaluation.rename(between := root / "between.zip")
    background.rename(evaluation)
    between.rename(background)
    with pytest.raises(ValueError, match=r"got no alphabet Aa, B-b_\(c\); unknown Dd/character01, Dd/character02"):
        read(root)


def test_a_truncated_zip_is_refused(root: Path) -> None:
    file = root / "omniglot-py" / "images_evaluation.zip"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"images_evaluation.zip: expected a whole zip file, got one cut short"):
        read(root)


def test_a_damaged_zip_member_is_refused(root: Path) -> None:
    file = root / "omniglot-py" / "images_evaluation.zip"
    content = bytearray(file.read_bytes())
    start = content.index(b"character02/0001_05.png")
    content[start + 100 : start + 200] = bytes(100)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"expected a drawing in images_evaluation/Dd/character02/0001_05.png, got "):
        read(root)
    assert not cache_files(root)


@pytest.mark.parametrize("gone", SETS)
def test_a_missing_set_says_where_it_belongs(gone: str, root: Path) -> None:
    (root / "omniglot-py" / f"{gone}.zip").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        Omniglot(str(root)).to("cpu")
    message = str(caught.value)
    folder = root / "omniglot-py"
    assert "9.5 MB" in message
    assert "dataset.download=true" in message
    assert message.startswith(f"dataset.root: expected {gone}.zip or {gone}/ in {folder}, got neither; put ")
    assert "META_EXP_DATA" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"ways": 1}, "dataset.ways: expected at least 2, got 1"),
        ({"shots": 0}, "dataset.shots: expected at least 1, got 0"),
        ({"queries": 0}, "dataset.queries: expected at least 1, got 0"),
        ({"meta_batch": 0}, "dataset.meta_batch: expected at least 1, got 0"),
        ({"split_by": "drawer"}, "dataset.split_by: expected character or alphabet, got drawer"),
        ({"split": "vinyals"}, "dataset.split: expected learn2learn, maml or lake, got vinyals"),
        ({"split_seed": -1}, "dataset.split_seed: expected an integer >= 0, got -1"),
    ],
)
def test_settings_out_of_range_need_no_data_to_be_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Omniglot("nowhere", **setting)  # type: ignore[arg-type]


def test_settings_alone_need_no_data() -> None:
    family = Omniglot("nowhere", ways=20)
    assert family.outputs == 20
    assert {split: len(names) for split, names in family.class_names.items()} == {
        "train": 1100, "validation": 100, "test": 423,
    }  # fmt: skip


# Splits


@pytest.mark.parametrize("split_by", ["character", "alphabet"])
def test_splits_are_disjoint_complete_and_seeded(split_by: str) -> None:
    names, again, other = (Omniglot("", split_by=split_by, split_seed=seed).class_names for seed in (0, 0, 1))  # type: ignore[arg-type]
    assert sorted(name for split in names.values() for name in split) == sorted(character_names())
    assert names == again != other


@pytest.mark.parametrize("split_by", ["character", "alphabet"])
def test_published_protocols(split_by: str) -> None:
    usual, maml, lake = (Omniglot("", split=split, split_by=split_by).split_classes for split in SPLIT_NAMES)  # type: ignore[arg-type]
    assert set(maml["train"]) == set(usual["train"]) | set(usual["validation"])
    assert set(maml["test"]) == set(usual["test"])
    assert set(maml["validation"]) <= set(maml["train"])
    assert not set(maml["test"]) & set(maml["train"])
    assert set(lake["test"]) == set(range(964, 1623))
    assert set(lake["train"]) | set(lake["validation"]) == set(range(964))
    assert not set(lake["train"]) & set(lake["validation"])
    counts = [[len(splits[name]) for name in ("train", "validation", "test")] for splits in (usual, maml, lake)]
    if split_by == "character":
        assert counts == [[1100, 100, 423], [1200, 100, 423], [864, 100, 659]]
    for splits in (usual, lake) if split_by == "alphabet" else ():
        alphabets = [{character_names()[index].split("/")[0] for index in classes} for classes in splits.values()]
        assert sum(map(len, alphabets)) == 50


def test_alphabets_stay_together() -> None:
    _, alphabet = np.unique([name.split("/")[0] for name in character_names()], return_inverse=True)
    for seed in range(100):
        splits = split_groups(alphabet, omniglot.SPLITS, seed)
        assert sum(len(set(alphabet[classes])) for classes in splits.values()) == 50
        for (split, classes), wanted in zip(splits.items(), (1100, 100, 423), strict=True):
            assert abs(len(classes) - wanted) <= 55, split


# The real drawings


@pytest.fixture(scope="session")
def real(omniglot_root: Path) -> np.ndarray:
    return read(omniglot_root)


def test_real_drawings_are_whole(real: np.ndarray) -> None:
    assert real.shape == (1623, 20, 28, 28, 1)
    assert len(character_names()) == 1623
    ink = real.mean(axis=(2, 3, 4)) / 255
    assert 0.002 < ink.min() < ink.max() < 0.3, "strokes are bright, on a dark ground"
    braille = character_names().index("Braille/character01")
    assert np.array_equal(real[braille, 2], real[braille, 18]), "the one duplicate of the published set"


def test_real_episodes(omniglot_root: Path, real: np.ndarray) -> None:
    family = Omniglot(str(omniglot_root), ways=20, shots=5, queries=15)
    for split in ("train", "validation", "test"):
        support, query = family.draw(split, np.random.default_rng(0), 2)
        assert support.x.shape == (2, 100, 1, 28, 28)
        assert query.x.shape == (2, 300, 1, 28, 28)
        assert 0.02 < query.x.mean() < 0.2
    choice = family.sampler.choose("test", np.random.default_rng(0), 2)
    rows = choice.classes
    assert np.isin(rows, family.split_classes["test"]).all()
    x = family.draw("test", np.random.default_rng(0), 2).support.x.unflatten(1, (20, 5))[:, :, 0, 0]
    np.testing.assert_allclose(x.numpy(), real[rows, choice.images[..., 0], ..., 0] / np.float32(255), atol=1e-6)
