"""Fixtures that several tests share: the folder of converted data and, where it is at hand, the real Omniglot."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of the whole session, one for all its workers; META_EXP_CACHE is kept where it is set."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("META_EXP_CACHE"):
            patch.setenv("META_EXP_CACHE", str(shared / "cache"))
        yield Path(os.environ["META_EXP_CACHE"])


@pytest.fixture(scope="session")
def omniglot_root(data_cache: Path) -> Path:
    """The folder that holds omniglot-py, with the real drawings."""
    root = os.environ.get("META_EXP_DATA")
    if not root:
        pytest.skip("META_EXP_DATA is not set: it names the folder that holds omniglot-py")
    return Path(root)
