"""Omniglot (Lake, Salakhutdinov and Tenenbaum, 2015): 1623 characters of 50 alphabets, 20 drawings of each.

The classes are those of learn2learn's FullOmniglot: the background set, then the evaluation set, each sorted by name.
A drawing is resized to 28 x 28 (Lanczos) and inverted: strokes are 1, paper is 0. The source, under
``root/omniglot-py``, is a zip file for each set, or the folder that it unpacks to. It is judged by its content, not by
a checksum of the zip file.
"""

import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from meta_exp.checks import require
from meta_exp.tasks.episode import Episode
from meta_exp.tasks.images import ImageTasks, Integers, Pixels, cached, check_sizes

FORMAT = "omniglot-28-v1"  # names the cached pixels: raise the version with any change of their making
DRAWINGS, SOURCE_SIDE, SIDE = 20, 105, 28
SPLITS = {"train": 1100, "validation": 100, "test": 423}  # characters
ALPHABETS = {  # characters of each alphabet
    "images_background": {
        "Alphabet_of_the_Magi": 20, "Anglo-Saxon_Futhorc": 29, "Arcadian": 26, "Armenian": 41,
        "Asomtavruli_(Georgian)": 40, "Balinese": 24, "Bengali": 46, "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14,
        "Braille": 26, "Burmese_(Myanmar)": 34, "Cyrillic": 33, "Early_Aramaic": 22, "Futurama": 26, "Grantha": 43,
        "Greek": 24, "Gujarati": 48, "Hebrew": 22, "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
        "Japanese_(hiragana)": 52, "Japanese_(katakana)": 47, "Korean": 40, "Latin": 26, "Malay_(Jawi_-_Arabic)": 40,
        "Mkhedruli_(Georgian)": 41, "N_Ko": 33, "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14, "Sanskrit": 42,
        "Syriac_(Estrangelo)": 23, "Tagalog": 17, "Tifinagh": 55,
    },
    "images_evaluation": {
        "Angelic": 20, "Atemayar_Qelisayer": 26, "Atlantean": 26, "Aurek-Besh": 26, "Avesta": 26, "Ge_ez": 26,
        "Glagolitic": 45, "Gurmukhi": 45, "Kannada": 41, "Keble": 26, "Malayalam": 47, "Manipuri": 40, "Mongolian": 30,
        "Old_Church_Slavonic_(Cyrillic)": 45, "Oriya": 46, "Sylheti": 28, "Syriac_(Serto)": 23, "Tengwar": 25,
        "Tibetan": 42, "ULOG": 26,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Omniglot:
    """N-way K-shot episodes of characters, with ``queries`` query drawings of each class.

    The 1623 characters are shuffled by ``split_seed`` and cut into 1100 for training, 100 for validation and 423 for
    testing; with ``split_by="alphabet"`` whole alphabets are, and cut where they come closest. With ``rotations``, each
    training character makes four classes, itself and its turns by 90, 180 and 270 degrees. The drawings are read when
    first needed, by ``to``, ``draw`` or ``sampler``: the settings alone need no data.

    Raises ValueError for settings out of range and for damaged or wrong data, FileNotFoundError for missing data.
    """

    root: str
    ways: int = 5
    shots: int = 1
    queries: int = 15
    meta_batch: int = 32
    split_by: Literal["character", "alphabet"] = "character"
    split_seed: int = 0
    rotations: bool = True

    input_shape = (1, SIDE, SIDE)
    classes = True

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_sizes(self.ways, self.shots, self.queries, self.meta_batch)
        known = self.split_by in ("character", "alphabet")
        require(known, "dataset.split_by", "character or alphabet", self.split_by)
        require(self.split_seed >= 0, "dataset.split_seed", "an integer >= 0", self.split_seed)

    @property
    def outputs(self) -> int:
        """One output for each class of an episode."""
        return self.ways

    @cached_property
    def split_classes(self) -> dict[str, Integers]:
        """The classes of each split, in ascending order."""
        alphabets = [name.split("/")[0] for name in character_names()]
        _, group = np.unique(alphabets, return_inverse=True)
        return split_groups(group if self.split_by == "alphabet" else np.arange(len(alphabets)), self.split_seed)

    @cached_property
    def sampler(self) -> ImageTasks:
        """The drawings of each split, and how episodes are drawn from them."""
        pixels = read_omniglot(Path(self.root).expanduser() / "omniglot-py")
        images = {split: torch.from_numpy(pixels[classes]) for split, classes in self.split_classes.items()}
        return ImageTasks(images, self.ways, self.shots, self.queries, rotated=("train",) if self.rotations else ())

    @property
    def class_names(self) -> dict[str, list[str]]:
        """The names "alphabet/character" of the classes of each split, before rotation."""
        names = character_names()
        return {split: [names[index] for index in classes] for split, classes in self.split_classes.items()}

    def draw(self, split: str, rng: np.random.Generator, tasks: int) -> Episode:
        """Draw ``tasks`` episodes of train, validation or test: x [tasks, points, 1, 28, 28] and y [tasks, points]."""
        return self.sampler.draw(split, rng, tasks)

    def to(self, device: torch.device | str) -> None:
        """Move the drawings to the device that trains."""
        self.sampler.to(device)


def character_names() -> list[str]:
    """Name the classes in order: alphabet/character01 and so on."""
    return [name for alphabets in ALPHABETS.values() for name in _characters(alphabets)]


def split_groups(group: Integers, seed: int) -> dict[str, Integers]:
    """Split the classes, class c being in group ``group[c]``, so that no group is in two splits.

    The groups are shuffled and laid in a row, and the row is cut between groups where that is closest to SPLITS. No
    alphabet has more than 55 characters: every split gets some.
    """
    order = np.random.default_rng(seed).permutation(group.max() + 1)
    ends = np.bincount(group)[order].cumsum()
    edges = np.cumsum(list(SPLITS.values()))[:-1]
    cuts = [int(np.abs(ends - edge).argmin()) + 1 for edge in edges]
    parts = zip(SPLITS, np.split(order, cuts), strict=True)
    return {split: np.flatnonzero(np.isin(group, part)) for split, part in parts}


def read_omniglot(folder: Path) -> Pixels:
    """Return all drawings, uint8 [1623, 20, 28, 28, 1] with strokes 255, from the cache or from the sets in ``folder``.

    Raises FileNotFoundError if a set is missing, ValueError if it is not whole.
    """
    sources = {name: find_source(folder, name) for name in ALPHABETS}
    listings = {name: list_drawings(source) for name, source in sources.items()}
    for name, source in sources.items():
        check_drawings(source, listings[name], ALPHABETS[name])

    def build() -> Pixels:
        return np.concatenate([convert(sources[name], sorted(listings[name])) for name in sources])

    stamps = sorted(entry for listing in listings.values() for entry in listing.items())
    fingerprint = hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]
    return cached(f"{FORMAT}-{fingerprint}", (len(character_names()), DRAWINGS, SIDE, SIDE, 1), build)


def find_source(folder: Path, name: str) -> Path:
    """Find the set ``name`` in ``folder``: its zip file, or else its folder."""
    for source in (folder / f"{name}.zip", folder / name):
        if source.exists():
            return source
    raise FileNotFoundError(
        f"dataset.root: expected {name}.zip or {name}/ in {folder}, got neither; put images_background.zip and "
        f"images_evaluation.zip of Omniglot (github.com/brendenlake/omniglot, folder python) into {folder}, or set "
        "dataset.root / META_EXP_DATA"
    )


def list_drawings(source: Path) -> dict[str, str]:
    """Map the name set/alphabet/character/drawing.png of each drawing to what differs when its content does."""
    if source.is_dir():
        files = {file.relative_to(source.parent).as_posix(): file.stat() for file in source.glob("*/*/*.png")}
        stamps = {name: f"{stat.st_size} {stat.st_mtime_ns}" for name, stat in files.items()}
    else:
        with _open_zip(source) as archive:
            stamps = {entry.filename: f"{entry.file_size} {entry.CRC}" for entry in archive.infolist()}
    return {name: stamp for name, stamp in stamps.items() if _is_drawing(name)}


def check_drawings(source: Path, drawings: dict[str, str], alphabets: dict[str, int]) -> None:
    """Raise ValueError, naming what is wrong, unless there are 20 drawings of each character and no others."""
    characters = _characters(alphabets)
    counts = Counter("/".join(name.split("/")[1:3]) for name in drawings)
    present = {name.split("/")[0] for name in counts}
    problems = {
        "no alphabet": [name for name in alphabets if name not in present],
        "no character": [name for name in characters if name not in counts and name.split("/")[0] in present],
        "unknown": sorted(counts.keys() - set(characters)),
        "uneven": [f"{name} ({counts[name]})" for name in characters if counts[name] not in (0, DRAWINGS)],
    }
    got = "; ".join(f"{problem} {_shorten(names)}" for problem, names in problems.items() if names)
    expected = f"{len(alphabets)} alphabets with {len(characters)} characters and {DRAWINGS} drawings of each"
    require(not got, str(source), expected, got, "fetch it again")


def convert(source: Path, names: list[str]) -> Pixels:
    """Read the drawings ``names``, sorted, 20 of each character: uint8 [characters, 20, 28, 28, 1] with strokes 255.

    Raises ValueError for a drawing that cannot be read or has another size than 105 x 105.
    """
    pixels = np.empty((len(names), SIDE, SIDE, 1), np.uint8)
    with _reader(source) as read:
        progress = track(names, f"Converting Omniglot ({source.name})", console=Console(stderr=True))
        for row, name in zip(pixels, progress, strict=True):
            row[..., 0] = _shrink(read, source, name)
    return pixels.reshape(-1, DRAWINGS, SIDE, SIDE, 1)


def _shrink(read: Callable[[str], bytes], source: Path, name: str) -> Pixels:
    try:
        image = Image.open(io.BytesIO(read(name)))
        image.load()
    except Exception as error:  # file, zip and PNG have errors of their own; what matters is which drawing
        raise ValueError(f"{source}: expected a drawing in {name}, got {error}; fetch it again") from error
    expected = f"{SOURCE_SIDE} x {SOURCE_SIDE} pixels in {name}"
    require(image.size == (SOURCE_SIDE, SOURCE_SIDE), str(source), expected, f"{image.width} x {image.height}")
    return 255 - np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


@contextmanager
def _reader(source: Path) -> Iterator[Callable[[str], bytes]]:
    if source.is_dir():
        yield lambda name: (source.parent / name).read_bytes()
    else:
        with _open_zip(source) as archive:
            yield archive.read


def _open_zip(source: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{source}: expected a whole zip file, got one cut short or damaged; fetch it again"
        ) from error


def _characters(alphabets: dict[str, int]) -> list[str]:
    return [f"{name}/character{number:02}" for name, count in alphabets.items() for number in range(1, count + 1)]


def _is_drawing(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 4 and parts[3].endswith(".png") and not parts[3].startswith(".")


def _shorten(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
