"""Splits of one's own: a partition by a seed, names as people call them, and what would be lost is refused."""

import numpy as np
import pytest

from meta_exp.tasks.splits import check_shares, find_splits, require_once, shuffled, split_folders


@pytest.mark.parametrize(("count", "sizes"), [(10, [6, 2, 2]), (100, [60, 20, 20]), (7, [4, 2, 1]), (1, [1, 0, 0])])
def test_a_shuffle_puts_each_into_one_split_by_its_share(count, sizes):
    splits = shuffled(count, (0.6, 0.2, 0.2), 3)
    assert list(splits) == ["train", "validation", "test"]
    assert [len(places) for places in splits.values()] == sizes
    assert sorted(np.concatenate(list(splits.values()))) == list(range(count))
    assert all((np.diff(places) > 0).all() for places in splits.values())


def test_a_shuffle_is_its_seeds():
    one, same, other = (shuffled(50, (0.6, 0.2, 0.2), seed)["test"].tolist() for seed in (0, 0, 1))
    assert one == same != other


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.5, 0.5, 0.0), (0.5, 0.4, 0.2), (1.2, -0.4, 0.2)])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match=r"^dataset.shares: expected three shares > 0 .* whose sum is 1, got \["):
        check_shares(shares, 0)


def test_a_seed_is_a_number_from_0():
    with pytest.raises(ValueError, match=r"^dataset.split_seed: expected an integer >= 0, got -1"):
        check_shares((0.6, 0.2, 0.2), -1)


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_validation_goes_by_three_names(tmp_path, name):
    for folder in ("train", name, "test", ".hidden"):
        (tmp_path / folder).mkdir()
    (tmp_path / "README").touch()
    assert split_folders(tmp_path) == {
        "train": tmp_path / "train", "validation": tmp_path / name, "test": tmp_path / "test",
    }  # fmt: skip


REFUSED = {
    "no validation": (["train", "test"], "expected train, validation (or val) and test, got train, test alone; add"),
    "two of one": (["train", "val", "validation", "test"], "expected one of validation, got validation and val"),
    "more": (
        ["train", "val", "test", "extra"],
        "expected no folder beside train, validation and test, got extra; move",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_would_be_lost_are_refused(tmp_path, case):
    names, message = REFUSED[case]
    for name in names:
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        split_folders(tmp_path)
    assert message in str(refusal.value)


def test_folders_of_other_names_are_no_splits(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "train").touch()
    assert split_folders(tmp_path) == {}
    assert find_splits(tmp_path, [".txt"], lambda file: file.is_file()) == {}


def test_a_name_is_in_one_split():
    names = {}
    for name, split in (("a", "train"), ("a", "train"), ("b", "test")):
        require_once(names, name, split, "class")
    with pytest.raises(ValueError, match=r"^class a: expected one split, got train and test; give each to one"):
        require_once(names, "a", "test", "class")
