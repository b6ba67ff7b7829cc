"""What is written is whole or absent, and lands in no place but its own."""

import csv
import errno
import fcntl
import io
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from meta_exp import files
from meta_exp.terminal import plain


@pytest.fixture
def victim(tmp_path):
    """A file of somebody else's, that stays as it is."""
    file = tmp_path / "elsewhere" / "start_file"
    file.parent.mkdir()
    file.write_text("mine")
    yield file
    assert file.read_text() == "mine"
    assert list(file.parent.iterdir()) == [file]


WRITERS = {
    "text": lambda file: files.write_whole(file, "new"),
    "JSON": lambda file: files.write_json(file, {"new": 1}),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "pipe", "file", "none"])
def test_what_bears_the_name_is_replaced_and_never_followed(tmp_path, victim, writer, kind):
    folder = tmp_path / "folder"
    folder.mkdir()
    place = folder / "result"
    {
        "link": lambda: place.symlink_to(victim),
        "dangling": lambda: place.symlink_to(victim.with_name("new")),
        "hard link": lambda: place.hardlink_to(victim),
        "pipe": lambda: os.mkfifo(place),
        "file": lambda: place.write_text("old"),
        "none": lambda: None,
    }[kind]()
    WRITERS[writer](place)
    assert stat.S_ISREG(place.lstat().st_mode)
    assert "new" in place.read_text()
    assert list(folder.iterdir()) == [place]
    assert place.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_temporary_names_cannot_be_guessed(tmp_path, victim, monkeypatch):
    """And where one is, what stands there is not written."""
    names = []
    opened = os.open

    def note(path, flags, mode=0o777):
        names.append((str(path), flags))
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", note)
    for _ in range(2):
        files.write_whole(tmp_path / "a", "new")
    assert len({name for name, _ in names}) == 2
    assert all(flags & os.O_EXCL and flags & os.O_NOFOLLOW for _, flags in names)
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "known")
    (tmp_path / ".known.part").symlink_to(victim)
    with pytest.raises(FileExistsError) as refusal:
        files.write_whole(tmp_path / "a", "newer")
    assert refusal.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "new"


def test_an_error_names_the_file_and_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    for file in (tmp_path / "none" / "a", tmp_path / "folder"):
        with pytest.raises(OSError, match="directory") as refusal:
            files.write_whole(file, "new")
        assert refusal.value.filename == str(file)
    with pytest.raises(OSError, match="No space") as refusal, files.replacing(tmp_path / "b"):
        raise OSError(28, "No space left on device")
    assert refusal.value.filename == str(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_folders_that_are_links_are_refused(tmp_path, victim):
    (tmp_path / "pictures").symlink_to(victim.parent)
    with pytest.raises(ValueError, match="pictures: expected a folder to write into, got a link; remove it"):
        files.make_folder(tmp_path / "pictures")
    files.make_folder(tmp_path / "a" / "b")
    files.make_folder(tmp_path / "a" / "b")


def test_what_is_read_is_a_file_and_has_an_end(tmp_path):
    file = tmp_path / "metrics.json"
    harms = {"no plain file": lambda: os.mkfifo(file), "no plain": lambda: file.symlink_to("/dev/zero")}
    harms["more than"] = lambda: (file.touch(), os.truncate(file, files.LARGEST + 1))
    for got, harm in harms.items():
        harm()
        with pytest.raises(ValueError, match=f"metrics.json: expected metrics, got {got}"):
            files.read_json(file, "metrics")
        file.unlink()
    with pytest.raises(FileNotFoundError):
        files.read_json(file, "metrics")
    file.write_text('{"a": 1}')
    assert files.read_json(file, "metrics") == {"a": 1}


def test_what_killed_processes_left_is_removed(tmp_path):
    kept = [tmp_path / name for name in ("a.part", ".a.part", ".0123456789abcdef.png")]
    for file in (*kept, tmp_path / ".0123456789abcdef.part"):
        file.touch()
    files.remove_parts(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_formulas_are_defused_in_text_and_numbers_stay():
    words = ["=1+1", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1+1", "-", "=", "+e1"]
    numbers = ["-1.5", "+2", "-1e-3", "1", -1.5, 7, True, None, float("-inf")]
    stream = io.StringIO()
    files.write_rows(stream, [words, numbers])
    stream.seek(0)
    first, second = csv.reader(stream)
    assert first == [f"'{plain(word)}" for word in words]
    assert second == [*numbers[:4], "-1.5", "7", "True", "", "-inf"]


def test_streams_are_told_from_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("-", "/dev/null", "/dev/stdout", "/dev/fd/7", "/proc/self/fd/1", tmp_path / "pipe"):
        assert files.is_stream(files.Path(name)), name
    for name in ("a", tmp_path / "link", tmp_path / "none", tmp_path):
        assert files.is_stream(files.Path(name)) == (name == tmp_path), name


@pytest.mark.parametrize("number", files.NO_LOCKS)
def test_a_file_system_without_locks_is_named_with_the_remedy(tmp_path, monkeypatch, number):
    """As NFS without its lock service; no mere file is taken for a lock, since it would outlive a killed process."""

    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    lock = FileLock(tmp_path / ".lock")
    with pytest.raises(OSError, match="this file system has no locks; go elsewhere") as refusal:
        files.acquire(lock, "go elsewhere")
    assert refusal.value.filename == str(tmp_path / ".lock")
    assert not lock.is_locked


def test_who_asks_for_a_lock_keeps_nobody_from_it(tmp_path):
    """Neither another who asks, nor for longer than an instant one that takes it."""
    file = tmp_path / ".lock"
    assert not files.is_held(file)
    with FileLock(file):
        assert files.is_held(file)
    assert not files.is_held(file)
    with file.open("rb") as asked:  # as long as a process asks
        fcntl.flock(asked, fcntl.LOCK_SH)
        assert not files.is_held(file)
        with pytest.raises(Timeout):
            files.acquire(FileLock(file), "", wait_s=0)
        with ThreadPoolExecutor(1) as pool:
            taken = pool.submit(files.acquire, lock := FileLock(file, thread_local=False), "", wait_s=60)
            assert not lock.is_locked
            fcntl.flock(asked, fcntl.LOCK_UN)
            taken.result(60)
    assert files.is_held(file)
    lock.release()
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(tmp_path / "pipe")
    with FileLock(file):
        assert not files.is_held(tmp_path / "link")
        assert not files.is_held(tmp_path / "pipe"), "which nobody writes"


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def refuse(stream):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as full, files.writing(Path("/dev/full")) as stream:
        stream.write("words")
    assert full.value.filename == "/dev/full"
    (tmp_path / "file").write_text("before")
    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="No space left") as full:
        files.write_whole(tmp_path / "file", "after")
    assert full.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "[" * 100_000, "\udcff"])
def test_what_is_no_json_object_is_refused_in_one_line(tmp_path, text):
    file = tmp_path / "a.json"
    file.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"a\.json: expected the thing, got .+; mend it") as refusal:
        files.read_json(file, "the thing", "mend it")
    assert "\n" not in str(refusal.value)
