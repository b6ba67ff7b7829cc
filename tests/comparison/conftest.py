"""A small sweep for all tests of comparisons."""

import shutil

import pytest

SMALL = ["trainer=smoke", "model.widths=[8,8]", "validation_tasks=10", "test_tasks=25", "samples=3"]


@pytest.fixture
def sweep(trained, tmp_path):
    """A sweep's folder, to be written into: MAML and LLAMA with two seeds each."""
    for algorithm in ("maml", "llama"):
        for seed in (0, 1):
            keys = [f"algorithm={algorithm}", f"seed={seed}", "predictives=[map,linearized,sample]"]
            run = trained(f"comparison_{algorithm}_{seed}", *SMALL, *keys)
            shutil.copytree(run, tmp_path / "sweep" / f"{algorithm}_{seed}")
    return tmp_path / "sweep"
