"""Names of folders: readable where they can be, else unique by a hash, legal, short, and the same in any order."""

import random
import string
from pathlib import Path

import pytest

from meta_exp.runs import names
from meta_exp.runs.names import override_folder, run_name


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["seed=1", "algorithm=maml"], "algorithm-maml__seed-1"),
        (["curvature=last_layer", "optimizer.lr=1e-3"], "curvature-last_layer__optimizer.lr-0.001"),
        (["algorithm.inner_lr=-1"], "algorithm.inner_lr--1"),
        (["experiment=sinusoid", "logger=none", "logger.wandb.mode=online", "seed=0"], "seed-0"),
        (["trainer.accelerator=cpu", "callbacks.last.every_minutes=5", "dataset.root=/x"], "default"),
    ],
)
def test_readable_where_it_can_be(overrides, name):
    assert override_folder(overrides) == name


ODD = [
    "model.widths=[8,8]", "model.widths=[8, 9]", "model.widths=[88]", "name='a b'", 'name="a b"', "name=a-b",
    "name=a_b",
    "name='a/b'", "name='a,b=c'", "name='..'", "name=''", "name=null", "+x={a:{b:1}}", "+x={a:{b:2}}", "++x=1", "+x=1",
    "~x", f"name={'v' * 300}", f"name={'v' * 299}w", f"name='{'é' * 300}'", "name='ä'", "name='a__b'", "name=_a",
    "a.b=1", "a_b=1", "name='#?%:*<>|\\\\'",
]  # fmt: skip


def test_unique_legal_and_short_for_any_override():
    names = [override_folder([override]) for override in ODD]
    names += [override_folder(["name=x", "b_c=y"]), override_folder(["name=x_b", "c=y"])]
    names += [override_folder(["name='x__c-y'"]), override_folder(["name=x", "c=y"])]
    assert len(set(names)) == len(names)
    legal = set(string.ascii_letters + string.digits + "._-+")
    for name in names:
        assert 0 < len(name.encode()) <= 200
        assert set(name) <= legal
        assert name not in (".", "..")


def test_the_same_in_any_order():
    for overrides in (ODD[:4], ["seed=3", "algorithm=maml", "model.widths=[8,8]"]):
        shuffled = random.Random(0).sample(overrides, len(overrides))
        assert override_folder(shuffled) == override_folder(overrides)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("outputs/sinusoid/2026-01-01", "sinusoid_2026-01-01"),
        ("outputs/sweep/algorithm-maml__seed-1", "sweep_algorithm-maml__seed-1"),
        ("outputs/sinusoid/2026-01-01_12-30-00-123456", "sinusoid_2026-01-01_12-30-00-123456"),
        ("outputs/mini_imagenet/2026-01-01_12-30-00-123456", "mini_imagenet_2026-01-01_12-30-00-123456"),
        ("outputs/maml_vs_llama_sweep/seed-0", "maml_vs_llama_sweep_seed-0"),
    ],
)
def test_run_name_is_the_folder_below_outputs(tmp_path, folder, name):
    assert run_name(tmp_path / folder) == name


def test_run_names_of_other_folders_are_told_apart(tmp_path):
    folders = [tmp_path / "a" / "my run#1", tmp_path / "b" / "my run#1", tmp_path / "a" / "my run-1"]
    folders += [Path("outputs") / "s" / ("x" * 190 + end) for end in "ab"]
    names = [run_name(folder) for folder in folders]
    assert len(set(names)) == len(names)
    assert names[0].startswith("my-run-1-")
    assert all(len(name) <= 120 for name in names)


def test_run_names_below_outputs_never_collide(tmp_path):
    """All ways to read a few names as a path, and an outputs/ in an outputs/."""
    texts = ["maml_seed_0", "a_sweep_b_sweep_c", "a_sweep_2026-01-01_x_2026-01-01_y", "x_outputs_y", "x"]
    folders = set()
    for text in texts:
        for places in range(2 ** text.count("_")):
            bits = iter(range(text.count("_")))
            folders.add("".join("_/"[places >> next(bits) & 1] if c == "_" else c for c in text))
    folders = {Path("outputs") / folder for folder in folders if not folder.endswith("/")}
    names = {run_name(tmp_path / folder) for folder in folders}
    assert len(names) == len(folders) > 50
    assert run_name(tmp_path / "outputs" / "maml_seed" / "0").startswith("maml_seed_0-")


def test_what_differs_in_a_sweep_names_its_runs():
    sweep = ["algorithm=maml,llama", "trainer.max_steps=5", "seed=0,1", "optimizer.lr=range(1,3)", "seed=7"]
    assert names.varying_keys(sweep) == ["algorithm", "optimizer.lr"], "what stands behind wins"
    job = ["algorithm=maml", "trainer.max_steps=5", "curvature.prior_precision=3", "seed=0", "logger=none"]
    assert names.title(job, ["algorithm", "seed", "gone"]) == "maml, seed 0"
    assert names.title(job) == "maml, max_steps 5, tau 3, seed 0", "where it is watched is no part of it"
    assert names.title(["seed=1"], algorithm="llama") == "llama, seed 1"
    assert names.title([]) == ""
