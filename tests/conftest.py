"""Fixtures that several tests share: composed configs, the data cache and, where it is at hand, the real Omniglot."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

REPO = Path(__file__).parents[1]
torch.set_num_threads(1)  # several workers share the cores


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of the whole session, one for all its workers; META_EXP_CACHE is kept where it is set."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("META_EXP_CACHE"):
            patch.setenv("META_EXP_CACHE", str(shared / "cache"))
        yield Path(os.environ["META_EXP_CACHE"])


@pytest.fixture(scope="session")
def omniglot_root() -> Path:
    """The folder that holds omniglot-py, with the real drawings."""
    root = os.environ.get("META_EXP_DATA")
    if not root:
        pytest.skip("META_EXP_DATA is not set: it names the folder that holds omniglot-py")
    return Path(root)


@pytest.fixture
def config(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DictConfig]:
    """Compose train.yaml with overrides, as train.py does, for a run in a new folder."""

    def make(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
            cfg = compose("train", [*overrides, f"run_dir={tmp_path_factory.mktemp('run')}"], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    return make
