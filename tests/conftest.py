"""Fixtures that several tests share: composed configs, the data cache and, where it is at hand, the real Omniglot."""

import os
import shutil
import signal
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

if sys.dont_write_bytecode:  # each process would compile all that it imports, for ten seconds: write it elsewhere
    bytecode = tempfile.TemporaryDirectory(prefix="bytecode_")
    sys.dont_write_bytecode, sys.pycache_prefix = False, bytecode.name
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = bytecode.name

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script; commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read as NumPy is imported: its threads spin while they wait

import numpy as np
import pytest
import torch
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from PIL import Image

from meta_exp.runs.build import resolve
from meta_exp.runs.train import train

REPO = Path(__file__).parents[1]
torch.set_num_threads(1)  # several workers share the cores


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the whole session, one for all its workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def data_cache(shared: Path) -> Iterator[Path]:
    """The cache folder of the whole session; META_EXP_CACHE is kept where it is set."""
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
    """Compose train.yaml with overrides and resolve it, for a run in a new folder or in ``run_dir``."""
    return lambda *overrides, run_dir=None: resolve(compose_run(run_dir or tmp_path_factory.mktemp("run"), *overrides))


def compose_run(folder: Path, *overrides: str) -> DictConfig:
    """Compose the config of a run in ``folder``, of LLAMA where neither an algorithm nor an experiment is named."""
    if not any(override.startswith(("algorithm=", "experiment=")) for override in overrides):
        overrides = ("algorithm=llama", *overrides)
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        cfg = compose("train", [*overrides, f"run_dir={folder}"], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@pytest.fixture
def one_source() -> Iterator[None]:
    """Have compiled code in one C++ source, not optimised: else each of a hundred loops has a compiler to itself."""
    with torch._inductor.config.patch({"cpp_wrapper": True, "aot_inductor.debug_compile": True}):
        yield


@pytest.fixture(scope="session")
def trained(shared: Path, data_cache: Path) -> Callable[..., Path]:
    """Train a run once in the session and return its folder, which tests leave as it is."""

    def make(name: str, *overrides: str) -> Path:
        folder = shared / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            if not (folder / "metrics.json").exists():
                train(compose_run(folder, "logger=none", *overrides))
        return folder

    return make


@pytest.fixture
def sinusoid_run(trained: Callable[..., Path]) -> Path:
    """LLAMA on sinusoids, enough to adapt at all."""
    quick = ["trainer.max_steps=200", "trainer.val_check_interval=200", "test_tasks=20", "validation_tasks=10"]
    return trained("sinusoid", "trainer=smoke", *quick)


@pytest.fixture
def character_run(trained: Callable[..., Path], omniglot_root: Path) -> Path:
    """MAML on three characters, no alphabet of which is in two splits: about 4 of 5 right with 5 shots."""
    small = ["dataset.ways=3", "dataset.queries=2", "dataset.meta_batch=4", "model.filters=8", "test_tasks=10"]
    quick = ["algorithm.first_order=true", "chunk_size=null", "optimizer.lr=0.005", "trainer.max_steps=200"]
    names = ["dataset=omniglot", "algorithm=maml", "dataset.split_by=alphabet", "validation_tasks=10"]
    return trained("characters", "trainer=smoke", *names, *small, *quick, "trainer.val_check_interval=200")


@pytest.fixture(scope="session")
def own_images(shared: Path) -> Path:
    """Grey pictures of one's own, 12 x 10: ten classes, a dark bar on light each at its place, 16 of each or more."""
    folder = shared / "own_images"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            draft, rng = shared / "own_images.draft", np.random.default_rng(0)
            for c in range(10):
                (draft / f"bar{c}").mkdir(parents=True)
                for i in range(16 + c % 3):
                    pixels = rng.integers(200, 256, (12, 10), np.uint8)
                    pixels[c + 1, 2:8] = rng.integers(60)
                    Image.fromarray(pixels).save(draft / f"bar{c}" / f"{i}.png")
            draft.rename(folder)
    return folder


@pytest.fixture(scope="session")
def own_tables(shared: Path) -> Path:
    """Tables of one's own: twelve tasks of 24 rows or more, fuel = base + slope (speed - 100) in units far from 1."""
    folder = shared / "own_tables"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            draft, rng = shared / "own_tables.draft", np.random.default_rng(0)
            draft.mkdir()
            for car in range(12):
                base, slope = rng.uniform(5000, 9000), rng.uniform(10, 90)
                speed = rng.uniform(50, 150, 24 + car % 4)
                rows = [f"{v:.3f},{base + slope * (v - 100) + rng.normal() * 20:.2f}" for v in speed]
                (draft / f"car{car:02}.csv").write_text("speed,fuel\n" + "\n".join(rows) + "\n")
            draft.rename(folder)
    return folder


@pytest.fixture(scope="session")
def drawings(shared: Path, omniglot_root: Path) -> Path:
    """Real drawings of the alphabet Keble, which ``character_run`` keeps for testing: a folder a character."""
    folder = shared / "drawings"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            source = omniglot_root / "omniglot-py" / "images_evaluation"
            if source.is_dir():
                shutil.copytree(source / "Keble", folder)
            else:
                with zipfile.ZipFile(source.with_suffix(".zip")) as archive:
                    names = [name for name in archive.namelist() if "/Keble/" in name]
                    archive.extractall(shared, names)
                (shared / "images_evaluation" / "Keble").rename(folder)
    return folder
