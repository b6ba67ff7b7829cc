"""learn2learn as source and oracle: its drawings, its downloads, the distribution of its tasks. Its import is slow."""

import random
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from meta_exp.tasks import Omniglot
from meta_exp.tasks.images.episodes import ImageTasks
from meta_exp.tasks.images.omniglot import character_names, fetch

l2l = pytest.importorskip("learn2learn")

CLASSES, IMAGES, WAYS, SHOTS, QUERIES, TASKS = 4, 4, 3, 1, 2, 6000
SETS = ("images_background", "images_evaluation")


def drawings() -> torch.Tensor:
    """Images [classes, images, 2, 2, 1] whose corners tell the class, the image and which way is up."""
    pixels = torch.full((CLASSES, IMAGES, 2, 2, 1), 255, dtype=torch.uint8)
    pixels[:, :, 0, 0, 0] = torch.arange(CLASSES)[:, None]
    pixels[:, :, 0, 1, 0] = 100 + torch.arange(IMAGES)
    return pixels


def their_tasks(pixels: torch.Tensor, turns: int) -> list[list[tuple[float, ...]]]:
    """Draw with learn2learn, every quarter turn being a class of the data set: the images of each task by label."""
    turned = torch.stack([pixels[..., 0].rot90(q, (2, 3)) for q in range(turns)], 1).flatten(0, 1)
    x, y = turned.flatten(0, 1), torch.arange(len(turned)).repeat_interleave(IMAGES)
    dataset = l2l.data.MetaDataset(torch.utils.data.TensorDataset(x, y))
    transforms = [
        l2l.data.transforms.NWays(dataset, WAYS),
        l2l.data.transforms.KShots(dataset, SHOTS + QUERIES),
        l2l.data.transforms.LoadData(dataset),
        l2l.data.transforms.RemapLabels(dataset),
        l2l.data.transforms.ConsecutiveLabels(dataset),
    ]
    tasks = l2l.data.Taskset(dataset, transforms)
    drawn = []
    for _ in range(TASKS):
        x, y = tasks.sample()
        assert y.bincount().tolist() == [SHOTS + QUERIES] * WAYS
        drawn.append([tuple(image) for image in x[y.argsort(stable=True)].flatten(1).tolist()])
    return drawn


def our_tasks(pixels: torch.Tensor, turns: int) -> list[list[tuple[float, ...]]]:
    rotated = ("train",) if turns == 4 else ()
    tasks = ImageTasks(
        pixels.flatten(0, 1), [pixels.shape[1]] * CLASSES, {"train": np.arange(CLASSES)}, WAYS, SHOTS, QUERIES, rotated
    )
    support, query = tasks.draw("train", np.random.default_rng(0), TASKS)
    x = torch.cat([part.x.unflatten(1, (WAYS, -1)) for part in (support, query)], 2).flatten(1, 2)
    return [[tuple(image) for image in task] for task in x.mul(255).round().flatten(2).tolist()]


def same_distribution(one: Counter, other: Counter) -> bool:
    """Whether two samples of one size differ by no more than chance: chi-squared within five deviations."""
    keys = one.keys() | other.keys()
    chi_squared = sum((one[key] - other[key]) ** 2 / (one[key] + other[key]) for key in keys)
    return chi_squared < len(keys) - 1 + 5 * (2 * len(keys)) ** 0.5


@pytest.mark.parametrize("turns", [1, 4])
def test_episodes_are_distributed_as_learn2learns(turns: int) -> None:
    random.seed(0)  # learn2learn's
    pixels = drawings()
    ours, theirs = our_tasks(pixels, turns), their_tasks(pixels, turns)
    each = SHOTS + QUERIES
    kind = {  # of an image, read off it: its class with its turn
        tuple(pixels[c, i, ..., 0].rot90(q, (0, 1)).flatten().tolist()): (4 * c + q, i)
        for c in range(CLASSES)
        for i in range(IMAGES)
        for q in range(turns)
    }
    views = {
        "classes in the order of labels": lambda task: tuple(kind[image][0] for image in task[::each]),
        "images of the first class, support then query": lambda task: tuple(kind[image][1] for image in task[:each]),
        "a class and its first image": lambda task: kind[task[each]],
        "images of two classes": lambda task: (kind[task[0]][1], kind[task[-1]][1]),
    }
    for name, view in views.items():
        counts = [Counter(map(view, tasks)) for tasks in (ours, theirs)]
        assert same_distribution(*counts), name


def test_the_comparison_tells_distributions_apart() -> None:
    rng = np.random.default_rng(0)
    fair, also_fair = (Counter(rng.integers(6, size=6000).tolist()) for _ in range(2))
    loaded = Counter(rng.choice(6, size=6000, p=[0.25, 0.15, 0.15, 0.15, 0.15, 0.15]).tolist())
    assert same_distribution(fair, also_fair)
    assert not same_distribution(fair, loaded)


@pytest.fixture(scope="module")
def two_alphabets(omniglot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One alphabet of each published set, unpacked under omniglot-py."""
    root = tmp_path_factory.mktemp("two")
    for name, alphabet in zip(SETS, ("Blackfoot_(Canadian_Aboriginal_Syllabics)", "Angelic"), strict=True):
        with zipfile.ZipFile(omniglot_root / "omniglot-py" / f"{name}.zip") as archive:
            members = [member for member in archive.namelist() if f"{name}/{alphabet}/" in member]
            archive.extractall(root / "omniglot-py", members)
    return root


def test_drawings_are_those_of_learn2learn(
    two_alphabets: Path, omniglot_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import transforms
    from torchvision.datasets import Omniglot as TorchvisionOmniglot

    monkeypatch.setattr(TorchvisionOmniglot, "_check_integrity", lambda self: True)  # it wants a checksum
    resize = transforms.Resize(28, interpolation=transforms.InterpolationMode.LANCZOS)
    look = transforms.Compose([resize, transforms.ToTensor(), lambda x: 1 - x])
    theirs = l2l.vision.datasets.FullOmniglot(str(two_alphabets), look)
    store = Omniglot(str(omniglot_root)).store
    halves = theirs.dataset.datasets
    labels = [name for half in halves for name in half._characters]
    files = [file for half in halves for file, _ in half._flat_character_images]
    assert len(theirs) == 20 * (14 + 20)
    for index in range(len(theirs)):
        image, label = theirs[index]
        drawing = int(Path(files[index]).stem.split("_")[1]) - 1
        ours = store.images(character_names().index(labels[label]))[drawing, ..., 0]
        torch.testing.assert_close(torch.from_numpy(ours[None] / np.float32(255)), image, rtol=0, atol=1e-6)


def test_omniglot_is_fetched_by_learn2learn_whole_or_not_at_all(
    two_alphabets: Path, tmp_path: Path, serve: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import Omniglot as TorchvisionOmniglot
    from torchvision.datasets.utils import calculate_md5

    published, root = tmp_path / "published", tmp_path / "root"
    published.mkdir()
    for name in SETS:
        with zipfile.ZipFile(published / f"{name}.zip", "w") as archive:
            for file in sorted((two_alphabets / "omniglot-py" / name).rglob("*.png")):
                archive.write(file, file.relative_to(two_alphabets / "omniglot-py"))
    sums = {name: calculate_md5(published / f"{name}.zip") for name in SETS}
    monkeypatch.setattr(TorchvisionOmniglot, "download_url_prefix", serve(published))
    monkeypatch.setattr(TorchvisionOmniglot, "zips_md5", sums | {SETS[1]: "another"})
    with pytest.raises(ConnectionError, match=r"expected Omniglot \(16 MB\), got File not found or corrupted"):
        fetch(root)
    assert not list(root.iterdir())
    monkeypatch.setattr(TorchvisionOmniglot, "zips_md5", sums)
    fetch(root)
    assert sorted(file.name for file in (root / "omniglot-py").iterdir()) == [f"{name}.zip" for name in SETS]
    monkeypatch.setattr(TorchvisionOmniglot, "download_url_prefix", "http://127.0.0.1:9")
    fetch(root)  # what is there is not fetched again


def test_no_network_and_no_omniglot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import Omniglot as TorchvisionOmniglot

    monkeypatch.setattr(TorchvisionOmniglot, "download_url_prefix", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"got .*refused.*; put images_background.zip and images_evaluation.zip"):
        Omniglot(str(tmp_path / "root"), download=True).to("cpu")
    assert not list((tmp_path / "root").iterdir())
