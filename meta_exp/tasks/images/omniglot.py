"""Omniglot (Lake, Salakhutdinov and Tenenbaum, 2015): 1623 characters of 50 alphabets, 20 drawings of each.

The classes are those of learn2learn's FullOmniglot: the background set, then the evaluation set, each sorted by name.
A drawing is resized to 28 x 28 (Lanczos) and inverted: strokes are 1, paper is 0. The source, under
``root/omniglot-py``, is a zip file for each set, or the folder that it unpacks to. It is judged by its content, not by
a checksum of the zip file. Where it is missing, learn2learn fetches it if asked to.
"""

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

from meta_exp.config.checks import require
from meta_exp.tasks.episode import ClassEpisode, Episode
from meta_exp.tasks.images.episodes import ImageTasks, Integers, check_sizes
from meta_exp.tasks.images.files import Treatment
from meta_exp.tasks.images.picture import ClassifiedImages
from meta_exp.tasks.images.source import Listing, Pixels, Source, draft_folder, learn2learn, shorten
from meta_exp.tasks.images.store import ImageStore, open_store

DRAWINGS, SOURCE_SIDE, SIDE = 20, 105, 28
LARGEST = 2**16  # bytes of a drawing's file, which has some hundreds
SPLITS = {"train": 1100, "validation": 100, "test": 423}  # characters
LAKE_SPLITS = {"train": 864, "validation": 100}  # of the background set; the evaluation set is for test
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

    The characters are shuffled by ``split_seed`` and cut into those for training, validation and test, by ``split``:

    - ``learn2learn``: 1100 / 100 / 423.
    - ``maml``: 1200 / 423, the same 423. Validation takes 100 of the 1200, unturned: nothing else is left that the test
      does not need. The checkpoint is then chosen by characters that were trained on.
    - ``lake``: the published sets; of the background set 864 / 100, and the 659 of the evaluation set.

    With ``split_by="alphabet"`` whole alphabets are shuffled, and cut where they come closest. With ``rotations``, each
    training character makes four classes, itself and its turns by 90, 180 and 270 degrees. The drawings are read when
    first needed, by ``to``, ``draw`` or ``sampler``: the settings alone need no data. Where there are none,
    ``download`` fetches them with learn2learn.

    Raises ValueError for settings out of range and for damaged or wrong data, FileNotFoundError for missing data.
    """

    root: str
    ways: int = 5
    shots: int = 1
    queries: int = 15
    meta_batch: int = 32
    split: Literal["learn2learn", "maml", "lake"] = "learn2learn"
    split_by: Literal["character", "alphabet"] = "character"
    split_seed: int = 0
    rotations: bool = True
    download: bool = False

    input_shape = (1, SIDE, SIDE)
    classes = True
    treatment = Treatment()

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_sizes(self.ways, self.shots, self.queries, self.meta_batch)
        known = self.split in ("learn2learn", "maml", "lake")
        require(known, "dataset.split", "learn2learn, maml or lake", self.split)
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
        names = character_names()
        _, group = np.unique([name.split("/")[0] for name in names], return_inverse=True)
        group = group if self.split_by == "alphabet" else np.arange(len(names))
        if self.split == "lake":
            background = sum(ALPHABETS["images_background"].values())
            splits = split_groups(group[:background], LAKE_SPLITS, self.split_seed)
            return splits | {"test": np.arange(background, len(names))}
        splits = split_groups(group, SPLITS, self.split_seed)
        if self.split == "maml":
            splits["train"] = np.union1d(splits["train"], splits["validation"])
        return splits

    @cached_property
    def store(self) -> ImageStore:
        """All drawings, uint8 [32460, 28, 28, 1], 20 a class, strokes 255; read, checked and kept when asked for."""
        root = Path(self.root).expanduser()
        if self.download:
            fetch(root)
        return open_store(omniglot_source(root / "omniglot-py"))

    @cached_property
    def sampler(self) -> ImageTasks:
        """How episodes are drawn from the drawings of each split."""
        rotated = ("train",) if self.rotations else ()
        images, counts = torch.from_numpy(self.store.pixels), self.store.counts
        return ImageTasks(images, counts, self.split_classes, self.ways, self.shots, self.queries, rotated)

    @property
    def class_names(self) -> dict[str, list[str]]:
        """The names "alphabet/character" of the classes of each split, before rotation."""
        names = character_names()
        return {split: [names[index] for index in classes] for split, classes in self.split_classes.items()}

    @property
    def picture(self) -> ClassifiedImages:
        """What a learner makes of the first test task."""
        return ClassifiedImages(self)

    def draw(self, split: str, rng: np.random.Generator, tasks: int) -> Episode:
        """Draw ``tasks`` episodes of train, validation or test: x [tasks, points, 1, 28, 28] and y [tasks, points]."""
        return self.sampler.draw(split, rng, tasks)

    def draw_classes(self, split: str, rng: np.random.Generator, tasks: int) -> ClassEpisode:
        """Draw the same episodes, with their classes."""
        return self.sampler.draw_classes(split, rng, tasks)

    def to(self, device: torch.device | str) -> None:
        """Move the drawings to the device that trains."""
        self.sampler.to(device)


def character_names() -> list[str]:
    """Name the classes in order: alphabet/character01 and so on."""
    return [name for alphabets in ALPHABETS.values() for name in _characters(alphabets)]


def split_groups(group: Integers, sizes: dict[str, int], seed: int) -> dict[str, Integers]:
    """Split the classes, class c being in group ``group[c]``, so that no group is in two splits.

    The groups are shuffled and laid in a row, and the row is cut between groups where that is closest to ``sizes``. No
    alphabet has more than 55 characters: every split gets some.
    """
    _, group = np.unique(group, return_inverse=True)
    order = np.random.default_rng(seed).permutation(group.max() + 1)
    ends = np.bincount(group)[order].cumsum()
    edges = np.cumsum(list(sizes.values()))[:-1]
    cuts = [int(np.abs(ends - edge).argmin()) + 1 for edge in edges]
    parts = zip(sizes, np.split(order, cuts), strict=True)
    return {split: np.flatnonzero(np.isin(group, part)) for split, part in parts}


def omniglot_source(folder: Path) -> Source:
    """Describe the two sets in ``folder``; raises FileNotFoundError if one is missing."""
    parts = [find_set(folder, name) for name in ALPHABETS]

    def convert_parts() -> Iterator[Pixels]:
        listings = [list_drawings(part) for part in parts]
        for part, drawings, alphabets in zip(parts, listings, ALPHABETS.values(), strict=True):
            check_drawings(part, drawings, alphabets)
        for part, drawings in zip(parts, listings, strict=True):
            yield from convert(part, drawings)

    names = character_names()
    split_names = [name for name, alphabets in ALPHABETS.items() for _ in _characters(alphabets)]
    listing = Listing([DRAWINGS] * len(names), names, split_names)
    return Source("omniglot", parts, (SIDE, SIDE, 1), lambda: listing, convert_parts)


def find_set(folder: Path, name: str) -> Path:
    """Find the set ``name`` in ``folder``: its zip file, or else its folder."""
    for source in (folder / f"{name}.zip", folder / name):
        if source.exists():
            return source
    raise FileNotFoundError(
        f"dataset.root: expected {name}.zip or {name}/ in {folder}, got neither; put images_background.zip (9.5 MB) "
        "and images_evaluation.zip (6.5 MB) of Omniglot (github.com/brendenlake/omniglot, folder python) there, or "
        "with a network set dataset.download=true, or set dataset.root / META_EXP_DATA to where they are"
    )


def fetch(root: Path) -> None:
    """Fetch with learn2learn, from github.com/brendenlake/omniglot, the sets that are missing under ``root``.

    Raises ConnectionError where they cannot be had, ValueError without learn2learn; nothing half-fetched stays.
    """
    target = root / "omniglot-py"
    missing = [name for name in ALPHABETS if not (target / f"{name}.zip").exists() and not (target / name).exists()]
    if not missing:
        return
    their = learn2learn("vision.datasets")
    with draft_folder(root) as draft:
        try:
            their.FullOmniglot(str(draft), download=True)
        except (OSError, RuntimeError) as error:
            raise ConnectionError(
                f"dataset.download: expected Omniglot (16 MB), got {error}; put {'.zip and '.join(missing)}.zip of "
                f"github.com/brendenlake/omniglot, folder python, into {target}"
            ) from error
        target.mkdir(exist_ok=True)
        for name in missing:
            (draft / "omniglot-py" / f"{name}.zip").replace(target / f"{name}.zip")


def list_drawings(part: Path) -> list[str]:
    """Name the drawings of a set, sorted: set/alphabet/character/drawing.png."""
    if part.is_dir():
        names = [file.relative_to(part.parent).as_posix() for file in part.glob("*/*/*.png")]
    else:
        with _open_zip(part) as archive:
            names = archive.namelist()
    return sorted(name for name in names if _is_drawing(name))


def check_drawings(part: Path, drawings: list[str], alphabets: dict[str, int]) -> None:
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
    got = "; ".join(f"{problem} {shorten(names)}" for problem, names in problems.items() if names)
    expected = f"{len(alphabets)} alphabets with {len(characters)} characters and {DRAWINGS} drawings of each"
    require(not got, str(part), expected, got, "fetch it again")


def convert(part: Path, drawings: list[str]) -> Iterator[Pixels]:
    """Read the sorted ``drawings`` of a set, and yield the 20 of each character: uint8 [20, 28, 28, 1], strokes 255.

    Raises ValueError for a drawing that cannot be read, or that is not one of 105 x 105 pixels of one bit.
    """
    with _reader(part, drawings) as read:
        for start in range(0, len(drawings), DRAWINGS):
            names = drawings[start : start + DRAWINGS]
            yield np.stack([_shrink(read, part, name) for name in names])[..., None]


def _shrink(read: Callable[[str], bytes], part: Path, name: str) -> Pixels:
    expected = f"{SOURCE_SIDE} x {SOURCE_SIDE} pixels of one bit in {name}"
    try:
        image = Image.open(io.BytesIO(read(name)), formats=["PNG"])
        got = f"{image.width} x {image.height} of mode {image.mode}"
        if fits := image.size == (SOURCE_SIDE, SOURCE_SIDE) and image.mode == "1":  # else it is not even decoded
            image.load()
    except Exception as error:  # file, zip and PNG have errors of their own; what matters is which drawing
        raise ValueError(f"{part}: expected a drawing in {name}, got {error}; fetch it again") from error
    require(fits, str(part), expected, got, "fetch it again")
    return 255 - np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


@contextmanager
def _reader(part: Path, drawings: list[str]) -> Iterator[Callable[[str], bytes]]:
    """Give what reads a drawing; raises ValueError for one larger than a drawing is, before any is read."""
    if part.is_dir():
        sizes = {name: (part.parent / name).stat().st_size for name in drawings}
        _check_sizes(part, sizes)
        yield lambda name: (part.parent / name).read_bytes()
    else:
        with _open_zip(part) as archive:
            _check_sizes(part, {name: archive.getinfo(name).file_size for name in drawings})
            yield archive.read


def _check_sizes(part: Path, sizes: dict[str, int]) -> None:
    large = [f"{name} ({size} bytes)" for name, size in sizes.items() if size > LARGEST]
    require(not large, str(part), f"drawings of at most {LARGEST} bytes", shorten(large), "fetch it again")


def _open_zip(part: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(part)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{part}: expected a whole zip file, got one cut short or damaged; fetch it again") from error


def _characters(alphabets: dict[str, int]) -> list[str]:
    return [f"{name}/character{number:02}" for name, count in alphabets.items() for number in range(1, count + 1)]


def _is_drawing(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 4 and parts[3].endswith(".png") and not parts[3].startswith(".")
