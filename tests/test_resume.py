"""A run that is killed and continued ends as one that was not: its weights, optimizer, metrics and history, to the bit.

Children forked from one process, so that each start is cheap, are killed with SIGKILL at random moments.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

REPO = Path(__file__).parents[1]
DRIVER = """
import os, random, signal, sys, time
from contextlib import redirect_stdout
from pathlib import Path
import torch
sys.path.insert(0, str(Path(sys.argv[1]) / "tests"))
from conftest import compose_run
from meta_exp import runs

seed, kills, folders = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
chance = random.Random(seed)
ARGUMENTS = ["trainer=smoke", "trainer.max_steps=30", "trainer.val_check_interval=7", "trainer.log_every_n_steps=5",
    "model.widths=[8]", "dataset.meta_batch=4", "test_tasks=4", "validation_tasks=4", "logger=csv",
    "callbacks.last.every_n_steps=1", "evaluation_steps=2"]

def child(folder, number):
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        with open(os.devnull, "w") as null, redirect_stdout(null):
            runs.train(compose_run(Path(folder), *ARGUMENTS, f"seed={number}"))
        os._exit(0)
    return pid

for number, folder in enumerate(folders):
    while True:
        pid = child(folder, number)
        if kills:
            if chance.random() < 0.7:  # most kills fall into the training, the others anywhere
                last, begun = Path(folder) / "last.ckpt", time.time()
                while not (last.exists() and last.stat().st_mtime > begun) and time.time() < begun + 10:
                    time.sleep(0.01)
            time.sleep(chance.uniform(0.0, 0.4))
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                break
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills -= 1
            last = Path(folder) / "last.ckpt"
            step = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0
            print("killed", number, step, flush=True)
        else:
            assert os.waitpid(pid, 0)[1] == 0
            break
"""


def drive(kills, seed, *folders):
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", DRIVER, str(REPO), str(seed), str(kills), *map(str, folders)]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


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


def test_killed_at_random_moments_and_continued(tmp_path):
    kills = int(os.environ.get("META_EXP_KILLS", "4"))
    names = ["0", "1"]
    assert drive(0, 0, *(tmp_path / "calm" / name for name in names)) == []
    killed = drive(kills, 1, *(tmp_path / "killed" / name for name in names))
    print(killed)
    assert len(killed) >= min(kills, 3)
    assert any(0 < int(line.split()[2]) < 30 for line in killed)  # in the middle of training
    for name in names:
        (words, tensors), (other_words, other_tensors) = (lasting(tmp_path / way / name) for way in ("calm", "killed"))
        assert words == other_words
        assert tensors.keys() == other_tensors.keys()
        assert all(torch.equal(tensors[key], other_tensors[key]) for key in tensors)
