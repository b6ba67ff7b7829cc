"""The image store: built once, shared, checked at opening, rebuilt when it is off, and never left half-written."""

import json
import logging
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
from filelock import FileLock

from meta_exp.tasks.images import store as store_module
from meta_exp.tasks.images.source import Listing, Pixels, Source
from meta_exp.tasks.images.store import open_store, read_store

SIZE = (4, 4, 1)
COUNTS = [3, 5, 0, 2, 4]  # a class may have no image
NAMES = [f"class {index}" for index in range(5)]
SPLITS = ["train"] * 3 + ["test"] * 2
LISTING = Listing(COUNTS, NAMES, SPLITS)
IMAGES = np.random.default_rng(0).integers(256, size=(sum(COUNTS), *SIZE), dtype=np.uint8)
SHAPE = IMAGES.shape


def by_class(images: np.ndarray) -> Iterator[Pixels]:
    return iter(np.split(images, np.cumsum(COUNTS)[:-1]))


def listed(listing: Listing) -> Callable[[], Listing]:
    return lambda: listing


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("META_EXP_CACHE", str(tmp_path / "a" / "cache"))
    return tmp_path / "a" / "cache"


@pytest.fixture
def source(tmp_path: Path, cache: Path) -> Source:
    """A data set of five classes, published as one file."""
    file = tmp_path / "published"
    file.write_bytes(b"data")
    return Source("small", [file], SIZE, listed(LISTING), lambda: by_class(IMAGES))


def unread(source: Source) -> Source:
    """The same source, which must not be read."""

    def read() -> Any:
        raise AssertionError("read again")

    return replace(source, list_classes=read, convert=read)


def files(cache: Path) -> list[str]:
    return sorted(file.suffix for file in cache.iterdir())


def test_a_store_is_built_once_and_then_opened(source: Source, cache: Path) -> None:
    built = open_store(source)
    opened = open_store(unread(source))
    for store in (built, opened):
        np.testing.assert_array_equal(store.pixels, IMAGES)
        assert store.listing == LISTING
        for index, pixels in enumerate(by_class(IMAGES)):
            np.testing.assert_array_equal(store.images(index), pixels)
        assert store.file == source.store_file
        store.verify()
    assert built.content == opened.content
    assert isinstance(opened.pixels, np.memmap)
    assert files(cache) == [".lock", ".safetensors"]


def test_the_cache_folder_may_be_named_from_home(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("META_EXP_CACHE", "~/stores")
    assert source.store_file.parent == tmp_path / "stores"


def test_other_tools_can_read_the_file(source: Source) -> None:
    content = open_store(source).file.read_bytes()  # type: ignore[union-attr]
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    assert header["pixels"] == {"dtype": "U8", "shape": list(SHAPE), "data_offsets": [0, IMAGES.size]}
    assert content[start:] == IMAGES.tobytes()


def test_contents_differ_with_pixels_and_names(source: Source, tmp_path: Path) -> None:
    contents = {open_store(source).content}
    other = IMAGES.copy()
    other[-1, 3, 3, 0] ^= 1
    for changed in (
        replace(source, name="b", convert=lambda: by_class(other)),
        replace(source, name="c", list_classes=listed(LISTING._replace(class_names=[*NAMES[:4], "another"]))),
        replace(source, name="d", list_classes=listed(LISTING._replace(split_names=["train"] * 5))),
    ):
        contents.add(open_store(changed).content)
    assert len(contents) == 4


@pytest.mark.parametrize("channels", [1, 3])
def test_moments_and_borders_are_those_of_the_pixels(source: Source, channels: int) -> None:
    """In the store's header, so that nobody has to read the pixels for them."""
    images = np.random.default_rng(1).integers(256, size=(sum(COUNTS), 5, 7, channels), dtype=np.uint8)
    images[:9] |= 192  # the first classes are light
    images[0, 1:-1, 1:-1] = 0
    source = replace(source, size=(5, 7, channels), convert=lambda: by_class(images))
    for store in (open_store(source), open_store(unread(source))):
        for classes in ([0, 1, 3], [4], [0, 1, 2, 3, 4]):
            pixels = np.concatenate([store.images(index) for index in classes]) / 255
            means, deviations = store.moments(classes)
            np.testing.assert_allclose(means, pixels.mean((0, 1, 2)), rtol=1e-12)
            np.testing.assert_allclose(deviations, pixels.std((0, 1, 2)), rtol=1e-9)
        assert (store.light([0, 1]), store.light([0])) == (1, 1)
        assert 0.4 < store.light([0, 1, 3, 4]) < 1


def damage_header(content: bytes) -> bytes:
    return content.replace(b"class 3", b"class 8")


def damage_digests(digests: bytes) -> Callable[[bytes], bytes]:
    """Put something else in the place of the list of hashes, and leave the header as long as it was."""

    def damage(content: bytes) -> bytes:
        start = content.index(b'digests\\": ') + len(b'digests\\": ')
        end = content.index(b"]", start) + 1
        return content[:start] + digests.ljust(end - start) + content[end:]

    return damage


def deep(content: bytes) -> bytes:
    text = b"[" * 100_000
    return len(text).to_bytes(8, "little") + text + content


DAMAGES = {
    "empty": (lambda content: b"", "its header cannot be read"),
    "truncated": (lambda content: content[:-1], "it has another size"),
    "longer": (lambda content: content + b"x", "it has another size"),
    "noise": (lambda content: os.urandom(len(content)), "its header cannot be read"),
    "no JSON": (lambda content: content.replace(b"{", b"(", 1), "its header cannot be read"),
    "a name": (damage_header, "its header does not hold together"),
    "a hash": (
        lambda content: content.replace(b'digests\\": [\\"', b'digests\\": [\\"x', 1).replace(b" ", b"", 1),
        "header",
    ),
    "a pixel": (
        lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
        "its images of class 4 are not",
    ),
    "no hashes": (damage_digests(b"5"), "its header does not hold together"),
    "hashes of another kind": (damage_digests(b"[[], {}, 1, null, 2]"), "its header does not hold together"),
    "a long header": (lambda content: (2**40).to_bytes(8, "little") + content[8:], "its header cannot be read"),
    "a deep header": (lambda content: deep(content), "its header cannot be read"),
    "version": (lambda content: content.replace(b'format\\": 2', b'format\\": 0'), "it has another format"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_store_that_is_off_is_rebuilt_with_one_line(
    damage: str, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    file = source.store_file
    open_store(source)
    change, reason = DAMAGES[damage]
    before = file.read_bytes()
    file.write_bytes(change(before))
    with pytest.raises(ValueError, match=reason):
        read_store(source)
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(open_store(source).pixels, IMAGES)
    [record] = caplog.records
    assert record.getMessage().startswith(f"Rebuilding the data cache: {file} is ")
    assert file.read_bytes() == before


def test_a_store_of_a_changed_source_is_stale(source: Source, caplog: pytest.LogCaptureFixture) -> None:
    open_store(source)
    source.files[0].write_bytes(b"other data")
    np.testing.assert_array_equal(
        open_store(replace(source, convert=lambda: by_class(255 - IMAGES))).pixels, 255 - IMAGES
    )
    [record] = caplog.records
    assert record.getMessage() == f"Rebuilding the data cache: {source.store_file} is stale: it has another stamp"


def test_sources_in_two_places_have_two_stores(source: Source, tmp_path: Path, cache: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "published"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(b"data")
    open_store(source)
    open_store(replace(source, files=[elsewhere]))
    open_store(unread(source))
    assert files(cache).count(".safetensors") == 2


def test_large_stores_are_sampled_at_opening_and_verified_whole(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SAMPLE", 1)  # the first class, one in the middle, and the last
    file = open_store(source).file
    content = bytearray(file.read_bytes())  # type: ignore[union-attr]
    content[-IMAGES.size + COUNTS[0] * IMAGES[0].size] ^= 1  # in the second class
    file.write_bytes(content)  # type: ignore[union-attr]
    store = open_store(unread(source))
    with pytest.raises(ValueError, match="its images of class 1 are not those stored"):
        store.verify()


def test_without_a_writable_folder_images_stay_in_memory(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("META_EXP_CACHE", str(tmp_path / "file" / "cache"))
    store = open_store(source)
    np.testing.assert_array_equal(store.pixels, IMAGES)
    store.verify()
    assert store.file is None
    [record] = caplog.records
    assert record.getMessage().startswith("Cannot write the data cache, so the images stay in memory: ")


def test_a_full_disk_is_an_error_that_leaves_nothing(source: Source, cache: Path) -> None:
    """A limit on the size of files stands for the end of the disk: the kernel refuses to write, as it does there."""
    big = replace(source, size=(400, 400, 1), convert=lambda: by_class(np.zeros((14, 400, 400, 1), np.uint8)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
    try:
        with pytest.raises(
            OSError, match="File too large; the data cache needs 2 MB there: make room, or set"
        ) as caught:
            open_store(big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(big.store_file)
    assert files(cache) == [".lock"]
    assert open_store(big).pixels.shape == (14, 400, 400, 1)


def test_waiting_for_another_process_is_said(source: Source, caplog: pytest.LogCaptureFixture) -> None:
    source.store_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{source.store_file}.lock")
    with ThreadPoolExecutor(1) as pool:
        with lock:
            opening = pool.submit(open_store, source)
            commands.wait_for(lambda: "Waiting for another process that prepares" in caplog.text, "the line")
            assert not opening.done()
        assert opening.result(60).pixels.shape == SHAPE
    assert str(lock.lock_file) in caplog.text


def test_no_room_for_the_lock_is_an_error_too(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "FileLock", full)
    with pytest.raises(OSError, match="No space left on device"):
        open_store(source)


def test_a_faulty_source_leaves_nothing(source: Source, cache: Path) -> None:
    def convert() -> Iterator[Pixels]:
        yield IMAGES[:3]
        raise ValueError("the second class is wrong")

    with pytest.raises(ValueError, match="the second class is wrong"):
        open_store(replace(source, convert=convert))
    assert files(cache) == [".lock"]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from meta_exp.tasks.images.source import Listing, Source
from meta_exp.tasks.images.store import open_store

def convert():
    yield np.zeros((3, 4, 4, 1), np.uint8)
    os.kill(os.getpid(), signal.SIGKILL)

listing = Listing([3] * 5, [f"class {index}" for index in range(5)], ["train"] * 3 + ["test"] * 2)
open_store(Source("small", [Path(sys.argv[1])], (4, 4, 1), lambda: listing, convert))
"""


def test_a_build_that_was_killed_is_followed_by_a_good_one(source: Source, cache: Path) -> None:
    result = commands.finished([sys.executable, "-c", KILLED, source.files[0]])
    assert result.returncode == -9, result.stderr
    assert files(cache) == [".lock", ".tmp"]
    np.testing.assert_array_equal(open_store(source).pixels, IMAGES)
    assert files(cache) == [".lock", ".safetensors"]


def test_one_of_ten_builds_and_the_others_wait(source: Source) -> None:
    started, release, builds = threading.Event(), threading.Event(), []

    def convert() -> Iterator[Pixels]:
        builds.append(1)
        started.set()
        commands.wait_for(release.is_set, "the test to let go of the build")
        yield from by_class(IMAGES)

    stores = []
    slow = replace(source, convert=convert)
    workers = [threading.Thread(target=lambda: stores.append(open_store(slow))) for _ in range(10)]
    for worker in workers:
        worker.start()
    commands.wait_for(started.is_set, "one of them to build")
    release.set()
    for worker in workers:
        worker.join()
    assert builds == [1]
    assert len(stores) == 10


TEN = """
import os, sys, time
from multiprocessing import get_context
from pathlib import Path
import numpy as np
from meta_exp.tasks.images.source import Listing, Source
from meta_exp.tasks.images.store import open_store

def convert():
    with open(sys.argv[2], "a") as log:
        print(os.getpid(), file=log)
    for index in range(5):
        time.sleep(0.1)  # for the others to come
        yield np.full((3, 4, 4, 1), index, np.uint8)

def job(barrier):
    barrier.wait()
    store = open_store(source)
    store.verify()
    assert store.images(4)[0, 0, 0, 0] == 4

listing = Listing([3] * 5, [f"class {index}" for index in range(5)], ["train"] * 3 + ["test"] * 2)
source = Source("small", [Path(sys.argv[1])], (4, 4, 1), lambda: listing, convert)
context = get_context("fork")
barrier = context.Barrier(10)
jobs = [context.Process(target=job, args=[barrier]) for _ in range(10)]
for process in jobs:
    process.start()
for process in jobs:
    process.join()
sys.exit(sum(process.exitcode != 0 for process in jobs))
"""


def test_ten_processes_that_start_at_once_build_it_once(source: Source, tmp_path: Path) -> None:
    result = commands.finished([sys.executable, "-c", TEN, source.files[0], tmp_path / "builds"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "builds").read_text().split()) == 1


READER = """
import sys, time
from pathlib import Path
import numpy as np
import torch
from meta_exp.tasks.images.episodes import ImageTasks
from meta_exp.tasks.images.source import Listing, Source
from meta_exp.tasks.images.store import open_store

def resident():  # KB of a store's pages, each shared one counted by its share, and of the process's own memory
    taken, of_store = 0, False
    for word, *values in map(str.split, open("/proc/self/smaps")):
        if not word.endswith(":"):  # where a mapping begins; libraries' shares change with who else has them open
            of_store = values[-1].endswith(".safetensors")
        elif word == ("Pss:" if of_store else "Anonymous:"):
            taken += int(values[0])
    return taken

def told(word):
    while not Path(sys.argv[2], word).exists():
        time.sleep(0.01)

size = (224, 224, 1)
names = [str(index) for index in range(64)]
listing = Listing([20] * 64, names, names)
empty = (np.zeros((20, *size), np.uint8) for index in range(64))
tasks = ImageTasks(torch.zeros(10, 4, 4, 1, dtype=torch.uint8), [2] * 5, {"train": np.arange(5)}, 5, 1, 1)
tasks.draw("train", np.random.default_rng(0), 2)  # what libraries take on their first use
before = resident()
store = open_store(Source("large", [Path(sys.argv[1])], size, lambda: listing, lambda: empty))
store.verify()
tasks = ImageTasks(torch.from_numpy(store.pixels), store.counts, {"train": np.arange(64)}, 5, 1, 1)
tasks.draw("train", np.random.default_rng(0), 2)
print("open", flush=True)
told("measure")
print(resident() - before, flush=True)
told("end")
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the kernel does not tell the resident memory")
def test_two_processes_share_the_pages(source: Source, tmp_path: Path) -> None:
    size = 64 * 20 * 224 * 224 / 1024  # KB
    command = [sys.executable, "-c", READER, source.files[0], tmp_path]
    with commands.begun(command) as first, commands.begun(command) as second:
        for reader in (first, second):
            commands.wait_for(lambda reader=reader: reader.stdout == "open\n", "a store to be opened", reader)
        (tmp_path / "measure").touch()
        for reader in (first, second):
            commands.wait_for(lambda reader=reader: reader.stdout.count("\n") == 2, "what a store takes", reader)
        taken = [int(reader.stdout.split()[1]) for reader in (first, second)]  # while both have it open
        assert 0.9 * size < sum(taken) < 1.3 * size, taken
        (tmp_path / "end").touch()
        assert (first.wait(), second.wait()) == (0, 0)
