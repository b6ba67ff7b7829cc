"""What reaches a dashboard, read back through wandb's own messages, and loggers that fail without harm."""

import fcntl
import io
import json
import logging
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from unittest.mock import MagicMock

import commands
import pytest
import wandb
from pytorch_lightning.loggers import CSVLogger
from wandb.proto import wandb_internal_pb2

from meta_exp.runs.train import train
from meta_exp.training import loggers
from meta_exp.training.history import History
from meta_exp.training.loggers import Guarded, TensorBoard, WandB

BLOCK, HEADER, WHOLE, LAST = 32768, 7, 1, 4
TINY = ["trainer=smoke", "model.widths=[8]", "dataset.meta_batch=5", "test_tasks=4", "validation_tasks=4"]


def records(file):
    """Yield the messages of a W&B file: after 7 bytes, blocks of 32 KiB of parts, each with checksum, length, kind."""
    wandb.teardown()  # as at the end of a process: what wandb's own still holds back is written
    data, at, message = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at < len(data):
        if (left := BLOCK - at % BLOCK) < HEADER:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        message += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            yield record
            message = b""


def named(item):
    return item.key or "/".join(item.nested_key)


def test_offline_run_holds_all_and_nothing_else(config, tmp_path):
    ids, logged = [], []
    for seed in (1, 2):
        cfg = config(*TINY, f"seed={seed}", f"logger.wandb.save_dir={tmp_path}")
        train(cfg)
        ids.append(cfg.run_name)
        logged.append([json.loads(line) for line in (Path(cfg.run_dir) / "history.jsonl").read_text().splitlines()])
    for seed, name, rows in zip((1, 2), ids, logged, strict=True):
        (file,) = (tmp_path / "wandb").glob(f"offline-run-*-{name}/*.wandb")
        found = list(records(file))
        (run,) = (record.run for record in found if record.HasField("run"))
        values = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert (run.run_id, run.job_type) == (name, "llama")
        assert run.display_name.startswith("llama, ")
        assert run.display_name.endswith(f", seed {seed}"), "people see what differs"
        assert (run.run_group, list(run.tags)) == ("sinusoid", ["sinusoid", "ggn"])
        assert (values["seed"], values["choices"]["curvature"]) == (seed, "ggn")
        history = [{named(i): json.loads(i.value_json) for i in r.history.item} for r in found if r.HasField("history")]
        assert len(history) == len(rows) + 1  # and the pictures
        for got, row in zip(history, rows, strict=False):
            assert got["step"] == row.pop("step")
            assert row.items() <= got.items()
            assert got.get("versus_tasks/validation/loss") == row.get("validation/loss")
        assert [row["tasks_seen"] for row in history if "tasks_seen" in row] == [10, 10, 20, 20]
        pictures = [value for key, value in history[-1].items() if key.startswith("pictures/fan")]
        assert pictures
        assert list(file.parent.glob("files/media/images/pictures/*.png"))
        assert file.parent.name.startswith(f"offline-run-{seed}-"), "so do those who list folders"
        axes = {r.metric.name or r.metric.glob_name: r.metric.step_metric for r in found if r.HasField("metric")}
        assert axes["validation/*"] == "step"
        assert axes["versus_tasks/*"] == "tasks_seen"


def test_a_continued_run_is_one_run(config, tmp_path):
    cfg = config(*TINY, f"logger.wandb.save_dir={tmp_path}")
    train(cfg)
    (Path(cfg.run_dir) / "metrics.json").unlink()  # as if killed in the last moment
    train(cfg)
    assert (tmp_path / "wandb" / "latest-run" / f"run-{cfg.run_name}.wandb").is_file()
    assert (tmp_path / "wandb" / "debug.log").is_file()
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    history = [
        {named(i): json.loads(i.value_json) for i in r.history.item} for r in records(file) if r.HasField("history")
    ]
    steps = [row["step"] for row in history if "validation/loss" in row]
    assert steps == [2, 4]


def test_a_logger_that_fails_is_said_once_and_stops_no_training(config, tmp_path, caplog):
    (tmp_path / "file").write_text("a file where a folder is wanted")
    cfg = config(*TINY, f"logger.wandb.save_dir={tmp_path}/file")
    with caplog.at_level(logging.WARNING):
        train(cfg)
    assert (Path(cfg.run_dir) / "metrics.json").exists()
    assert caplog.text.count("logger wandb stopped") == 1


def test_a_disk_that_fills_up_stops_no_training(config, caplog, monkeypatch):
    def full(self, metrics, step=None):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pytorch_lightning.loggers.CSVLogger.log_metrics", full)
    cfg = config(*TINY, "logger=csv")
    train(cfg)
    assert caplog.text.count("No space left on device") == 1
    assert (Path(cfg.run_dir) / "metrics.json").exists()


def test_tensorboard_holds_scores_and_pictures(config):
    cfg = config(*TINY, "logger=tensorboard")
    train(cfg)
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(Path(cfg.run_dir) / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("validation/loss")] == [2, 4]
    assert events.Tags()["images"] == ["pictures/fan"]


@pytest.mark.parametrize("logger", ["wandb", "tensorboard"])
def test_panels_to_compare_runs_by_come_first(config, tmp_path, logger):
    """As curves and once at the end; dashboards sort sections by name."""
    keys = ["algorithm=llama_predictive", "dataset.noise=0.3", f"logger={logger}"]
    keys += [f"logger.wandb.save_dir={tmp_path}"] if logger == "wandb" else []
    cfg = config(*TINY, *keys)
    train(cfg)
    if logger == "wandb":
        (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
        logged = [[named(i) for i in r.history.item] for r in records(file) if r.HasField("history")]
        counts = {name: sum(name in row for row in logged) for row in logged for name in row}
    else:
        event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        events = event_accumulator.EventAccumulator(str(Path(cfg.run_dir) / "tensorboard"))
        events.Reload()
        counts = {name: len(events.Scalars(name)) for name in events.Tags()["scalars"]}
    ends = dict.fromkeys(("nll", "regret", "coverage_95", "mse"), 1)
    curves = {f"{name}_validation": 2 for name in ("nll", "coverage_95", "mse")}
    found = {name.removeprefix("compare/"): n for name, n in counts.items() if name.startswith("compare/")}
    assert found == ends | curves
    assert min(name for name in counts if "/" in name).startswith("compare/")
    assert not any("versus_tasks/compare" in name for name in counts)


@pytest.mark.parametrize(
    ("title", "words"),
    {
        "maml, seed 0": "seed-0-maml",
        "llama_predictive, eta 0.05, seed 3": "seed-3-eta-0.05-llama_predictive",
        "llama, noise 0.1, shots 10, widths [40, 40], seed 1": "1-40-40-10-0.1-llama",
        "as I call it": "as-I-call-it",
        "../a\x1b b": "..-a-b",
    }.items(),
)
def test_an_offline_folder_begins_with_what_differs(tmp_path, title, words):
    """And is found by all that is behind it, and by W&B's links."""
    folder = tmp_path / "offline-run-20260101_000000-a_b"
    (folder / "logs").mkdir(parents=True)
    (tmp_path / "latest-run").symlink_to(folder.name)
    (tmp_path / "debug.log").symlink_to(f"{folder.name}/logs")
    loggers._name(folder, title)
    [named] = (file.name for file in tmp_path.iterdir() if not file.is_symlink())
    assert named == f"offline-run-{words}-run-20260101_000000-a_b"
    assert (tmp_path / "latest-run").readlink() == Path(named)
    assert (tmp_path / "debug.log").is_dir()


def test_leet_lists_runs_by_what_differs_and_shows_what_they_are_compared_by(config, tmp_path):
    """In a terminal of 80 columns, which the beginnings of W&B's own folder names would fill."""
    for seed in (1, 2):
        train(config(*TINY, f"seed={seed}", f"logger.wandb.save_dir={tmp_path}", f"run_title='llama, seed {seed}'"))
    wandb.teardown()
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
    variables = {**os.environ, "TERM": "xterm-256color", "WANDB_CONFIG_DIR": str(tmp_path / "leet")}
    command = [Path(sys.executable).with_name("wandb"), "leet", tmp_path / "wandb"]
    leet = subprocess.Popen(command, env=variables, start_new_session=True, stdin=end, stdout=end, stderr=end)
    os.close(end)
    said = b""

    def told():
        nonlocal said
        while select.select([terminal], [], [], 0)[0]:
            said += os.read(terminal, 2**16)
        words = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode(errors="replace"))
        return all(part in words for part in ("run-seed-1-llama-", "run-seed-2-llama-", "compare/coverage_95"))

    try:
        commands.wait_for(told, "the list of leet")
        os.write(terminal, b"q")
        commands.wait_for(lambda: leet.poll() is not None, "the end of leet")
    finally:
        leet.kill()
        os.close(terminal)
    assert leet.wait() == 0


def files(folder):
    """All files below a folder; of wandb's own, which has links and a log of itself, what is to be synced."""
    return {
        file: file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
        and ("wandb" not in file.parts or (file.suffix == ".wandb" and "latest-run" not in file.parts))
    }


def log_once(make, run_dir, run_name, value):
    """What a start of a run does with a logger: a new one, its config, its history, a score."""
    logger = Guarded(make(run_dir), "it")
    run_dir.mkdir(parents=True, exist_ok=True)
    logger.begin({"run_dir": str(run_dir), "run_name": run_name}, History(run_dir, 10))
    logger.log_metrics({"score": value}, 11)
    logger.finalize("success")
    logger.close(0)
    if isinstance(logger.logger, WandB):
        wandb.teardown()
        time.sleep(1.1)  # two runs of one id in the same second would have one folder
    assert logger.logger is not None, "it was not stopped"


def wandb_of(folder):
    keys = {"group": "g", "job_type": "j", "tags": []}
    return lambda run_dir: WandB("project", str(folder), id="same", **keys)


PLACES = {
    "csv in the run": lambda shared: lambda run: CSVLogger(run, "csv", version=""),
    "csv in place of the run": lambda shared: lambda run: CSVLogger(run, "", version=""),
    "csv in one place": lambda shared: lambda run: CSVLogger(shared, "", version=""),
    "csv with a version": lambda shared: lambda run: CSVLogger(shared, "csv", version="v1"),
    "csv without a version": lambda shared: lambda run: CSVLogger(shared, "csv"),
    "csv above the run": lambda shared: lambda run: CSVLogger(run / "..", "", version=""),
    "tensorboard in the run": lambda shared: lambda run: TensorBoard(str(run)),
    "tensorboard in one place": lambda shared: lambda run: TensorBoard(str(shared)),
    "wandb of one id": wandb_of,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_logger_removes_its_own_files_alone(tmp_path, place):
    """Two runs of one name in two places, and what else lies there; the first is then started again."""
    shared, make = tmp_path / "shared", PLACES[place](tmp_path / "shared")
    first, second = tmp_path / "a" / "outputs" / "s" / "1", tmp_path / "b" / "outputs" / "s" / "1"
    for run in (first, second):
        (run / "csv").mkdir(parents=True)
        for name in ("best.ckpt", "curves.csv", "csv/notes.txt"):
            (run / name).write_text(f"{run}")
    shared.mkdir()
    for name in ("metrics.csv", "events.out.tfevents.1", "hparams.yaml"):
        (shared / name).write_text("another's")
    before = files(tmp_path)
    log_once(make, first, "s_1", 0.25)
    of_first = files(tmp_path).keys() - before.keys()
    assert of_first
    there = files(tmp_path)
    log_once(make, second, "s_1", 0.5)
    assert there.items() <= files(tmp_path).items(), "what was there is as it was"
    there = {file: text for file, text in files(tmp_path).items() if file not in of_first}
    log_once(make, first, "s_1", 0.75)
    after = files(tmp_path)
    assert there.items() <= after.items()
    assert len(after.keys() - there.keys()) == len(of_first), "a run that starts again is one run"


@pytest.mark.parametrize("mode", ["disabled", "online"])
def test_an_offline_run_is_kept_where_it_is_not_written_anew(tmp_path, monkeypatch, mode):
    log_once(wandb_of(tmp_path), tmp_path / "run", "same", 0.5)
    written = files(tmp_path / "wandb")
    monkeypatch.setattr(wandb, "init", lambda **arguments: MagicMock())
    WandB("project", str(tmp_path), "same", "g", "j", [], mode).log_hyperparams({"run_dir": str(tmp_path / "run")})
    assert written.items() <= files(tmp_path).items()


def test_a_logger_in_the_runs_folder_leaves_its_checkpoints(config):
    cfg = config(*TINY, "logger=csv", "logger.csv.name=''")
    train(cfg)
    folder = Path(cfg.run_dir)
    scores = (folder / "metrics.csv").read_text()
    (folder / "metrics.json").unlink()  # as if killed in the last moment
    weights = (folder / "best.ckpt").read_bytes()
    train(cfg)
    assert (folder / "best.ckpt").read_bytes() == weights
    assert (folder / "metrics.csv").read_text().count("\n") == scores.count("\n")


@pytest.mark.parametrize("make", [lambda run: CSVLogger(run, "csv", version=""), lambda run: TensorBoard(str(run))])
def test_a_logger_writes_through_no_link_of_the_runs_folder(tmp_path, make):
    """As a stranger's folder may bring them: in place of the logger's folder, and of the files in it."""
    run, victim = tmp_path / "run", tmp_path / "victim"
    victim.mkdir()
    (victim / "start_file").write_text("mine")
    folder = Path(make(run).log_dir)
    run.mkdir()
    folder.symlink_to(victim)
    log_once(make, run, "run", 0.5)
    assert not folder.is_symlink()
    for file in list(folder.iterdir()):
        file.unlink()
        file.symlink_to(victim / "start_file")
    log_once(make, run, "run", 0.5)
    assert [(file.name, file.read_text()) for file in victim.iterdir()] == [("start_file", "mine")]
    assert all(file.is_file() and not file.is_symlink() for file in folder.iterdir())


def test_a_missing_key_is_said_and_not_asked_for(tmp_path, monkeypatch):
    """On a terminal W&B would ask, and wait for ever."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    asked = []
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(wandb, "init", lambda **arguments: asked.append(sys.stdin.isatty()) or MagicMock())
    WandB("project", str(tmp_path), "id", "g", "j", [], "online").log_hyperparams({"run_dir": str(tmp_path / "run")})
    assert asked == [False]
    assert sys.stdin.isatty()
