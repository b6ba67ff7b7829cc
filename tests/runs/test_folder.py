"""A sweep that is killed and started again ends as one that was not: weights, optimizer, metrics, history, to the bit.

Children forked from one process, so that each start is cheap, are killed with SIGKILL at random moments.
"""

import json
import os
import sys
from pathlib import Path

import commands
import torch

REPO = Path(__file__).parents[2]
DRIVER = """
import gc, os, random, runpy, signal, sys, time
from pathlib import Path
import torch
import meta_exp.runs.train

gc.freeze()  # a child that collects what it inherits copies all of it
script, seed, kills, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
chance = random.Random(seed)
sys.argv[1:] = ["-m", "algorithm=maml,llama", "lr_schedule=none,cosine", "trainer=smoke", "trainer.max_steps=200",
    "trainer.val_check_interval=7", "trainer.log_every_n_steps=5", "model.widths=[8]", "dataset.meta_batch=4",
    "test_tasks=4", "validation_tasks=4", "logger=csv", "callbacks.last.every_n_steps=1", "evaluation_steps=2"]

def start():
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            os._exit(1 if end.code else 0)
        os._exit(0)
    return pid

def checkpoints():
    return list(folder.glob("outputs/*/*/last.ckpt"))

while True:
    pid, begun = start(), time.time()
    if not kills:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    in_training, ended = chance.random() < 0.7, 0  # most kills fall into the training, the others anywhere
    while in_training and not ended and not any(file.stat().st_mtime > begun for file in checkpoints()):
        time.sleep(0.01)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        time.sleep(chance.uniform(0.0, 0.4))
        ended, status = os.waitpid(pid, os.WNOHANG)
    if ended:
        sys.exit(os.waitstatus_to_exitcode(status))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kills -= 1
    steps = [torch.load(file, weights_only=True)["global_step"] for file in checkpoints()
        if not (file.parent / "metrics.json").exists()]
    print("killed at", max(steps, default=0), flush=True)
"""


def drive(kills, seed, folder):
    folder.mkdir()
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", DRIVER, str(REPO / "train.py"), str(seed), str(kills), str(folder)]
    result = commands.finished(command, folder, variables)
    assert result.returncode == 0, result.stderr
    return [int(line.split()[2]) for line in result.stdout.splitlines()]


def lasting(folder):
    """All that a run leaves but times."""
    state = torch.load(folder / "last.ckpt", weights_only=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics = {name: value for name, value in metrics.items() if "time/" not in name and "second" not in name}
    texts = [(folder / name).read_text() for name in ("curves.csv", "history.jsonl", "csv/metrics.csv")]
    return (metrics, texts), {**state["state_dict"], **_flat(state["optimizer_states"])}


def _flat(value, name=""):
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {k: v for key, part in items for k, v in _flat(part, f"{name}.{key}").items()}


def test_a_sweep_killed_at_random_moments_and_started_again(tmp_path):
    kills = int(os.environ.get("META_EXP_KILLS", "4"))
    assert drive(0, 0, tmp_path / "calm") == []
    killed = drive(kills, 1, tmp_path / "killed")
    print("killed at steps", killed)
    assert len(killed) >= min(kills, 3)
    assert any(0 < step < 200 for step in killed)  # in the middle of training
    calm = sorted((tmp_path / "calm").glob("outputs/*/algorithm*"))
    assert len(calm) == 4
    for folder in calm:
        words, tensors = lasting(folder)
        other_words, other_tensors = lasting(tmp_path / "killed" / folder.relative_to(tmp_path / "calm"))
        assert words == other_words
        assert tensors.keys() == other_tensors.keys()
        assert all(torch.equal(tensors[key], other_tensors[key]) for key in tensors)
