"""Training end to end, with data, optimizer and logging: a run of train.py against a loop as learn2learn's examples do.

Both train in one process and take turns in blocks of iterations. Ours is timed inside the run, from a step's start to a
later one's, so that sampling, the optimizer, logging and what Lightning does between steps count; start-up, validation
and test do not. learn2learn's loop samples, adapts task by task and steps, and logs nothing.
"""

import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import learn2learn as l2l
import torch
from measure import DEVICE, Step, Times, composed, finish
from omegaconf import DictConfig, OmegaConf
from peer import Peer
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchvision.datasets import Omniglot

from meta_exp.runs.build import Run, build, resolve
from meta_exp.tasks.images.omniglot import find_set
from meta_exp.tasks.stream import TaskFamily, draw_batch

UNPACKED = Path(tempfile.gettempdir()) / "omniglot-for-learn2learn"  # kept: to unpack and index it takes a minute
SETS = ("images_background", "images_evaluation")


class Turns(Callback):
    """Time our steps block by block, and between two blocks give learn2learn its turn."""

    def __init__(self, theirs: Step, steps: int, their_steps: int) -> None:
        self.take, self.steps, self.their_steps = theirs, steps, their_steps
        self.resumed = 0.0
        self.times: Times = {"ours": [], "learn2learn": []}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End our block, and time theirs."""
        if trainer.global_step % self.steps:
            return
        finish()
        now = time.perf_counter()
        self.times["ours"].append((now - self.resumed) / self.steps)
        for _ in range(self.their_steps):
            self.take()
        finish()
        self.resumed = time.perf_counter()
        self.times["learn2learn"].append((self.resumed - now) / self.their_steps)


def train(overrides: Sequence[str], blocks: int, steps: int, their_steps: int) -> Times:
    """Return the seconds of an iteration of ours and of learn2learn's in each of ``blocks``, after one to warm up."""
    last = (blocks + 1) * steps + 1
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"trainer.max_steps={last}", f"trainer.val_check_interval={last}", "validation_tasks=1"]
        place = [f"logger.wandb.save_dir={folder}", f"run_dir={folder}"]
        cfg = resolve(composed(["logger=wandb", *place, *settings, *overrides]))
        run = build(cfg)
        turns = Turns(their_loop(cfg, run), steps, their_steps)
        run.trainer.callbacks.append(turns)
        try:
            run.recorder.begin(OmegaConf.to_container(cfg, resolve=True), Path(folder), 0)
            run.trainer.fit(run.learner, run.stream)
        finally:
            run.recorder.close(exit_code=0)
    return {name: seconds[-blocks:] for name, seconds in turns.times.items()}


def their_loop(cfg: DictConfig, run: Run) -> Step:
    """Return an iteration of learn2learn's loop on the same tasks, with the same optimizer."""
    peer = Peer(run.learner.to(DEVICE))
    optimizer = torch.optim.Adam(peer.maml.parameters(), lr=cfg.optimizer.lr)
    draw = drawings(cfg) if run.family.classes else curves(run.family)

    def iteration() -> None:
        optimizer.zero_grad()
        for task in draw():
            peer.backward(*(part.to(DEVICE) for part in task))
        peer.mean_gradient(run.family.meta_batch)
        optimizer.step()

    return iteration


def curves(family: TaskFamily) -> Callable[[], list[tuple[Tensor, ...]]]:
    """Return how a meta-batch of curves is drawn: as ours are, learn2learn having none."""
    numbers = count()

    def draw() -> list[tuple[Tensor, ...]]:
        support, query = draw_batch(family, 1, "train", next(numbers))
        return list(zip(*support, *query, strict=True))

    return draw


def drawings(cfg: DictConfig) -> Callable[[], list[tuple[Tensor, ...]]]:
    """Return how a meta-batch of Omniglot is drawn by learn2learn: from PNG files, as its examples do."""
    ways, shots, tasks = cfg.dataset.ways, cfg.dataset.shots, cfg.dataset.meta_batch
    assert cfg.dataset.queries == shots
    for name in SETS:
        if not (UNPACKED / "omniglot-py" / name).exists():
            with zipfile.ZipFile(find_set(Path(cfg.dataset.root) / "omniglot-py", name)) as archive:
                archive.extractall(UNPACKED / "omniglot-py")
    Omniglot._check_integrity = lambda self: True  # it wants the checksum of one zip file
    sampler = l2l.vision.benchmarks.get_tasksets(
        "omniglot", ways, 2 * shots, ways, 2 * shots, num_tasks=20000, root=str(UNPACKED)
    ).train

    def draw() -> list[tuple[Tensor, ...]]:
        batch = []
        for _ in range(tasks):
            x, y = sampler.sample()
            batch.append((x[::2], y[::2], x[1::2], y[1::2]))  # a class's images are neighbours
        return batch

    return draw
