"""Where the images of one's own classes stand: a folder is a class, and its splits are told in one of four ways.

    root/train/CLASS/*.png    root/val/...    root/test/...        sub-folders named for the splits
    root/CLASS/*.png          root/train.txt, val.txt, test.txt    lists of the names of the classes of each split
    root/CLASS/*.png                                               nothing: they are shuffled by a seed
    root/NAME-cache-{train,val,test}.pkl                           pickles, as miniImageNet is passed around

A class is a folder that holds images, and no folders; its name is its path, as ``Latin/character01`` where alphabets
hold characters. Lists stand in root, in ``root/splits``, in the one folder that is in there, or in the folder that is
named; beside ``splits`` the classes may stand in ``root/data``, as in CIFAR-FS. A list is a text file of a name a line,
or a CSV file with a column ``label`` or ``class``; further files beside folders are let be, but for images.

A pickle is a dict of ``image_data``, uint8 [images, H, W, 3], and ``class_dict``, the places of each class. It is read
by an unpickler that runs no code.
"""

import csv
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from meta_exp.config.checks import require
from meta_exp.tasks.images.files import entries, read_image, treat_image
from meta_exp.tasks.images.mini_imagenet import read_pickle
from meta_exp.tasks.images.source import Listing, Pixels, Source, shorten
from meta_exp.tasks.splits import NAMES, find_splits, require_once, split_folders

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".pnm")
LISTS = (".txt", ".csv")
UNSPLIT = "all"  # the split of a class that no folder gives to one
DEEPEST = 8  # folders in folders; a link to a folder above would go on for ever


def folder_source(root: Path, size: tuple[int, int, int], lists: str | None = None) -> Source:
    """Describe the classes in ``root``, whose images are brought to ``size`` [H, W, C]; ``lists`` may name a folder.

    Raises ValueError where no layout is known by what is there.
    """
    got = f"{'a file' if root.exists() else 'nothing'} at {root}"
    require(root.is_dir(), "dataset.root", "a folder of images", got, "name it by dataset.root=FOLDER")
    root = root.absolute()  # the same store from wherever it is named
    name = f"image-folder-{'x'.join(map(str, size))}"
    if pickles := _find_pickles(root):
        return _pickle_source(name, pickles, size)
    listed = find_lists(root, lists)
    base = root / "data" if listed and (root / "data").is_dir() else root
    parts = {} if listed else split_folders(base)
    folders = [folder for folder in _folders(base) if folder != root / "splits" or not listed]
    remedy = "name the folder whose sub-folders are classes"
    require(bool(folders), "dataset.root", "a folder with a sub-folder a class", f"none in {base}", remedy)

    @cache
    def found() -> list[tuple[str, str, list[Path]]]:
        if parts:
            return [(split, *leaf) for split, part in parts.items() for leaf in _leaves(part)]
        return [(UNSPLIT, *leaf) for folder in folders for leaf in _leaves(folder, folder.name)]

    def list_classes() -> Listing:
        splits: dict[str, str] = {}
        for split, name, _ in found():
            require_once(splits, name, split, "class")
        counts = [len(files) for _, _, files in found()]
        require(sum(counts) > 0, "dataset.root", "images in its folders", f"none in {base}")
        return Listing(counts, [name for _, name, _ in found()], [split for split, _, _ in found()])

    def convert() -> Iterator[Pixels]:
        height, width, channels = size
        for _, _, files in found():
            pixels = np.empty((len(files), *size), np.uint8)
            for place, file in enumerate(files):
                pixels[place] = read_image(file, (channels, height, width), invert=False).transpose(1, 2, 0)
            yield pixels

    return Source(name, folders, size, list_classes, convert)


def _leaves(folder: Path, name: str = "", depth: int = 0) -> Iterator[tuple[str, list[Path]]]:
    """Yield the name and the images of each class in ``folder``, which has that name itself if it holds no folders."""
    require(
        depth <= DEEPEST, str(folder), f"at most {DEEPEST} folders in one another", "more", "is one a link upwards?"
    )
    folders = _folders(folder)
    for entry in folders:
        yield from _leaves(entry, f"{name}/{entry.name}".lstrip("/"), depth + 1)
    if not folders:
        require(bool(name), str(folder), "a sub-folder a class", "none")
        yield name, _images(folder)


def _folders(folder: Path) -> list[Path]:
    """Return the folders in ``folder``; raises ValueError at an image beside them."""
    found = entries(folder)
    folders = [entry for entry in found if entry.is_dir()]
    loose = [entry for entry in found if folders and not entry.is_dir() and entry.suffix.lower() in SUFFIXES]
    remedy = "move it into its class, or away"
    require(not loose, str(loose[0] if loose else folder), "no image beside folders", "one", remedy)
    return folders


def _images(folder: Path) -> list[Path]:
    """Return what is in the folder of a class; raises ValueError at what is no image by its name."""
    found = entries(folder)
    for entry in found:
        fits = entry.suffix.lower() in SUFFIXES and entry.is_file()
        require(fits, str(entry), f"an image ({', '.join(SUFFIXES)})", "something else", "move it away")
    return found


def find_lists(root: Path, lists: str | None) -> dict[str, Path]:
    """Return the lists of the classes of each split, or nothing; ``lists`` names their folder below ``root``.

    Raises ValueError where that has none, or where several folders of lists could be meant.
    """
    if lists is not None:
        folder = root / lists
        require(folder.is_dir(), "dataset.splits", f"a folder below {root}", "none", "name the folder of the lists")
        found = find_splits(folder, LISTS, Path.is_file)
        require(bool(found), "dataset.splits", f"lists as train.txt, val.txt and test.txt in {folder}", "none")
        return found
    inner = sorted(entry for entry in (root / "splits").glob("*") if entry.is_dir())
    places = {folder: find_splits(folder, LISTS, Path.is_file) for folder in (root, root / "splits", *inner)}
    known = [folder for folder, found in places.items() if found]
    got = ", ".join(str(folder.relative_to(root)) for folder in known)
    require(len(known) <= 1, str(root), "lists of classes in one place", got, "name one of them by dataset.splits")
    return places[known[0]] if known else {}


def read_lists(lists: dict[str, Path], names: Sequence[str]) -> dict[str, list[str]]:
    """Read the classes of each split; raises ValueError for one that is not among ``names``, or is in two splits."""
    known, splits = set(names), dict[str, str]()
    found = {split: _read_list(file) for split, file in lists.items()}
    for split, file in lists.items():
        unknown = [name for name in found[split] if name not in known]
        require(not unknown, str(file), "names of classes, which are folders", f"no folder {shorten(unknown)}")
        for name in found[split]:
            require_once(splits, name, split, "class")
    return found


def _read_list(file: Path) -> list[str]:
    """Return the names in a list, each once, in their order."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected a list of classes in UTF-8, got {error}") from error
    if file.suffix == ".txt":
        names = [line.strip().strip("/") for line in text.splitlines()]
    else:
        rows = [row for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)]
        header = [cell.strip().lower() for cell in rows[0]] if rows else []
        column = next((header.index(word) for word in ("label", "class") if word in header), None)
        known = column is not None or all(len(row) == 1 for row in rows)
        require(known, str(file), "a column label or class", f"the columns {', '.join(header)}")
        names = [row[column or 0].strip() for row in rows[column is not None :] if len(row) > (column or 0)]
    found = list(dict.fromkeys(name for name in names if name))
    require(bool(found), str(file), "the names of some classes", "none")
    return found


def _find_pickles(root: Path) -> dict[str, Path]:
    """Return the pickles of the three splits, or nothing."""
    prefixes = sorted({file.name.rpartition("-cache-")[0] for file in root.glob("*-cache-*.pkl")})
    if not prefixes:
        return {}
    require(len(prefixes) == 1, str(root), "the pickles of one data set", f"those of {', '.join(prefixes)}")
    found = {}
    for split, names in NAMES.items():
        files = [root / f"{prefixes[0]}-cache-{name}.pkl" for name in names]
        there = [file for file in files if file.is_file()]
        expected = f"one pickle of {split}, as {files[-1].name}"
        require(len(there) == 1, str(root), expected, " and ".join(file.name for file in there) or "none")
        found[split] = there[0]
    return found


def _pickle_source(name: str, pickles: dict[str, Path], size: tuple[int, int, int]) -> Source:
    def list_classes() -> Listing:
        splits: dict[str, str] = {}
        counts, names, of = [], [], []
        for split, file in pickles.items():
            _, rows = _read_cache(file)
            for name, row in rows.items():
                require_once(splits, name, split, "class")
                counts.append(len(row))
                names.append(name)
                of.append(split)
        require(sum(counts) > 0, "dataset.root", "images in its pickles", "none")
        return Listing(counts, names, of)

    def convert() -> Iterator[Pixels]:
        height, width, channels = size
        for file in pickles.values():
            images, rows = _read_cache(file)
            for row in rows.values():
                pixels = np.empty((len(row), *size), np.uint8)
                for place, index in enumerate(row):
                    shown = treat_image(Image.fromarray(images[index]), (channels, height, width), invert=False)
                    assert shown is not None
                    pixels[place] = shown.transpose(1, 2, 0)
                yield pixels

    return Source(name, list(pickles.values()), size, list_classes, convert)


def _read_cache(file: Path) -> tuple[Pixels, dict[str, list[int]]]:
    """Return the images of a pickle, and their places by class in order of the names."""
    content = read_pickle(file)
    form = isinstance(content, dict) and isinstance(content.get("class_dict"), dict) and "image_data" in content
    require(form, str(file), "a dict of image_data and class_dict", type(content).__name__)
    images: Any = content["image_data"]
    got = f"{getattr(images, 'dtype', type(images).__name__)} {list(getattr(images, 'shape', []))}"
    fits = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == 3
    require(fits, str(file), "image_data of uint8 [images, H, W, 3]", got)
    rows = {}
    for name in sorted(map(str, content["class_dict"])):
        row = content["class_dict"].get(name)
        try:
            places = np.asarray(row).astype(np.int64, casting="same_kind") if len(row) else np.empty(0, np.int64)
            inside = places.ndim == 1 and bool(((places >= 0) & (places < len(images))).all())
        except (TypeError, ValueError):
            inside = False
        require(inside, f"{file}: class {name}", f"places among its {len(images)} images", "others")
        rows[name] = places.tolist()
    return images, rows
