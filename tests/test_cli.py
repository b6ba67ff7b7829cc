"""The commands as their user types them: real processes, their exit codes, their files and their words."""

import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from functools import partial
from math import isfinite
from pathlib import Path
from urllib.request import urlopen

import commands
import pytest
import torch
import yaml
from filelock import FileLock

REPO = Path(__file__).parents[1]
SMOKE = ["trainer=smoke", "test_tasks=20", "validation_tasks=10", "samples=3"]


train = partial(commands.run, "train.py")


def typed(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run train.py as ``train`` does, from the interpreter's start on."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
    variables = {name: value for name, value in variables.items() if not name.startswith("WANDB")}
    command = [sys.executable, str(REPO / "train.py"), *arguments]
    return commands.finished(command, folder, variables)


def finished(folder: Path) -> dict:
    """Check the files of a finished run and return its metrics."""
    for name in ("config.yaml", "train.log", "best.ckpt", "last.ckpt", "metrics.json"):
        assert (folder / name).stat().st_size > 0, name
    for name in ("best.ckpt", "last.ckpt"):
        checkpoint = torch.load(folder / name, weights_only=True)
        assert all(isinstance(value, torch.Tensor) for value in checkpoint["state_dict"].values())
    pictures = list((folder / "plots").iterdir())
    assert {picture.suffix for picture in pictures} == {".png", ".svg"}
    assert all(picture.stat().st_size > 5000 for picture in pictures)
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("train/tasks_per_second", "time/train_s", "validation/loss", "version/torch", "git_commit"):
        assert name in metrics
    assert all(isfinite(value) for value in metrics.values() if isinstance(value, float))
    return metrics


def test_default_run_is_llama_predictive_on_sinusoids_offline(tmp_path):
    result = typed(tmp_path, *SMOKE)
    assert result.returncode == 0, result.stderr
    (folder,) = (tmp_path / "outputs" / "sinusoid").iterdir()
    metrics = finished(folder)
    expected = {"algorithm": "llama_predictive", "dataset": "sinusoid", "seed": 0, "steps": 4, "test/tasks": 20}
    assert expected.items() <= metrics.items()
    for predictive in ("map", "linearized"):
        for score in ("mse", "nll"):
            assert {f"test/{predictive}/{score}", f"test/{predictive}/{score}_ci95"} <= set(metrics)
    assert "test/map/mse_step_0" in metrics
    assert "linearized" in result.stdout
    assert "tasks/s" in result.stdout
    assert "left" in result.stdout
    assert "calibrating on validation tasks, and intervals or sets on 20 fresh ones" in result.stdout
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["lr_schedule"]["_target_"] == "meta_exp.training.Cosine"
    offline_runs = list((tmp_path / "outputs" / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.stat().st_size > 0 for file in offline_runs] == [True]
    assert f"sinusoid_{folder.name}" in offline_runs[0].name


def test_omniglot_run(tmp_path, omniglot_root):
    arguments = ["dataset=omniglot", "algorithm=llama", "curvature=last_layer", "model.filters=8", "dataset.queries=2"]
    result = train(tmp_path, *SMOKE, *arguments, "logger=csv", f"hydra.run.dir={tmp_path}/run")
    assert result.returncode == 0, result.stderr
    metrics = finished(tmp_path / "run")
    assert {"algorithm": "llama", "dataset": "omniglot", "curvature": "last_layer"}.items() <= metrics.items()
    for predictive in ("map", "linearized"):
        assert 0 <= metrics[f"test/{predictive}/accuracy"] <= 1
        assert metrics[f"test/{predictive}/nll"] > 0
    assert {f"test/map/accuracy_step_{k}_ci95" for k in range(4)} <= set(metrics)
    assert "log_det" in next((tmp_path / "run").glob("csv/**/metrics.csv")).read_text()


def test_several_loggers_at_once_of_which_tensorboard_shows_all_runs(tmp_path):
    arguments = [*SMOKE, "algorithm=maml", "logger=[wandb,csv,tensorboard]", "hydra.run.dir=outputs/named/run"]
    result = train(tmp_path, *arguments)
    assert result.returncode == 0, result.stderr
    assert "logger" not in result.stdout, "none has failed"
    (rows,) = (tmp_path / "outputs" / "named" / "run").glob("csv/**/metrics.csv")
    assert "validation/loss" in rows.read_text().splitlines()[0]
    assert len(list((tmp_path / "outputs" / "wandb").glob("offline-run-*/*.wandb"))) == 1
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "outputs", "--host", "127.0.0.1", "--port", "0"]
    with commands.begun(command, tmp_path) as board:
        commands.wait_for(lambda: "http://127" in board.stdout + board.stderr, "its address", board)
        address = re.search(r"http://127[.\d:]+", board.stdout + board.stderr)[0]

        def runs():
            with urlopen(f"{address}/data/runs") as answer:
                return json.load(answer)

        commands.wait_for(runs, "its first reading", board)
        assert runs() == ["named/run/tensorboard"]


def test_sweep_makes_a_folder_a_run(tmp_path):
    result = train(tmp_path, "algorithm=maml,llama", "-m", *SMOKE)  # words stand on both sides of an option too
    assert result.returncode == 0, result.stderr
    folders = sorted((tmp_path / "outputs" / "sinusoid_sweep").glob("*/"))
    assert [finished(folder)["algorithm"] for folder in folders] == ["llama", "maml"]
    assert len(list((tmp_path / "outputs" / "wandb").glob("offline-run-*/*.wandb"))) == 2  # none holds another's data


def test_same_command_again_skips_retries_and_sums_up(tmp_path):
    sweep = ["-m", "algorithm=maml", "optimizer.lr=1e30,0.001", *SMOKE, "logger=none"]
    first, again = typed(tmp_path, *sweep), typed(tmp_path, *sweep)
    for result, state in ((first, "done"), (again, "skipped")):
        assert result.returncode == 1, result.stderr
        table = [line for line in result.stdout.splitlines() if line.startswith("│ ")]
        assert [line.split("│")[1].strip() for line in table] == ["1e+30", "0.001"], "columns by what differs"
        assert [line.split("│")[2].strip() for line in table] == ["failed", state]  # all others run
        assert "all runs: algorithm=maml trainer=smoke" in result.stdout
        assert "failed: lr 1e+30: step " in result.stdout.split("│")[-1]
        assert "objective is nan" in result.stdout.split("│")[-1]
        assert "sweep: 0 of 2 done, 1 running, 0 failed" in result.stdout
        assert result.stdout.startswith("sweep: 2 runs, in outputs/sinusoid_sweep\n"), "and no list of jobs"
        assert str(tmp_path) not in result.stdout, "paths are those from the working folder"
    folders = sorted((tmp_path / "outputs" / "sinusoid_sweep").glob("*/"))
    assert [(folder / "metrics.json").exists() for folder in folders] == [True, False]
    assert "Traceback" in (folders[1] / "train.log").read_text()
    assert "finished already, skipped" in again.stdout
    with FileLock(folders[0] / ".lock"):
        beside = train(tmp_path, *sweep)
    assert "failed: lr 0.001: expected no other process at this run, got one" in beside.stdout


def test_one_config_and_one_writer_a_folder(tmp_path):
    single = [*SMOKE, "logger=none", "hydra.run.dir=run"]
    assert train(tmp_path, *single).returncode == 0
    files = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    changed = train(tmp_path, *single, "algorithm.inner_lr=0.3", "seed=7")
    assert changed.returncode == 1
    assert "seed=0, now 7; algorithm.inner_lr=0.01, now 0.3" in changed.stderr.splitlines()[-1]
    with FileLock(tmp_path / "run" / ".lock"):
        second = train(tmp_path, *single)
    assert second.returncode == 1
    assert "expected no other process at this run" in second.stderr.splitlines()[-1]
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == files


def logged(run: Path) -> str:
    file = run / "train.log"
    return file.read_text() if file.exists() else ""


def test_a_signal_saves_and_ends_and_the_same_command_continues(tmp_path):
    single = [*SMOKE, "trainer.max_steps=1500", "trainer.val_check_interval=20", "logger=none", "hydra.run.dir=run"]
    single += ["model.widths=[4]", "dataset.meta_batch=2", "compile=false"]
    command = [sys.executable, str(REPO / "train.py"), *single]
    step = 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)):
        goal = 20 * (step // 20 + 1)
        with commands.begun(command, tmp_path) as process:
            # of the validations the screen has a tenth
            commands.wait_for(
                lambda words=f"step {goal} of": words in logged(tmp_path / "run"), f"step {goal}", process
            )
            process.send(number)
            assert process.wait() == code
            assert step == 0 or f"continued from step {step} of 1500\n" in process.stdout
            words = [*(word for word in single if not word.startswith("hydra.")), "hydra.run.dir=run"]
            said = f"to go on: {shlex.join(['uv', 'run', 'train.py', *words])}"
            assert number == signal.SIGKILL or process.stdout.splitlines()[-1] == said
        if number != signal.SIGKILL:
            step = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"]
            assert goal <= step < 1500
            assert f"step {step}: saved on {number.name}" in (tmp_path / "run" / "train.log").read_text()


def test_a_signal_does_not_wait_for_a_compilation(tmp_path):
    """It is said at once that it came, and nothing of the compiler is left."""
    long = ["trainer.max_steps=3000", "compile=true", "logger=none", "hydra.run.dir=run", *SMOKE[1:]]
    command = [sys.executable, str(REPO / "train.py"), *long]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with commands.begun(command, tmp_path, variables) as process:
            commands.wait_for(lambda: "compiling" in process.stdout, "its first step", process)
            process.send(number)
            assert process.wait() == code
            commands.wait_for(lambda: not process.left(), "the compiler's end", process)
            assert f"{number.name} came: saving after this step" in process.stdout
            assert f"{number.name}: this step takes longer and is not waited for" in process.stdout
            assert process.stderr.splitlines()[-1] == f"ended by {number.name}"


@pytest.mark.parametrize("sweep", [False, True])
def test_a_terminal_of_80_columns_has_a_bar_with_lines_above_it(tmp_path, sweep):
    """A pseudo-terminal, read to its end; a line of the log begins where no bar stands."""
    keys = [*SMOKE, "trainer.max_steps=400", "trainer.val_check_interval=100", "model.widths=[4]", "compile=false"]
    keys += ["calibrate=null"]
    command = [sys.executable, str(REPO / "train.py"), *(["-m", "seed=0"] if sweep else []), *keys, "logger=none"]
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
    variables = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    variables |= {"OMP_NUM_THREADS": "1", "TERM": "xterm"}
    streams = {"stdin": subprocess.DEVNULL, "stdout": end, "stderr": end}
    process = subprocess.Popen(command, cwd=tmp_path, env=variables, start_new_session=True, **streams)
    os.close(end)
    said = b""
    with suppress(OSError):  # by which Linux says that nobody writes any more
        while part := os.read(terminal, 2**16):
            said += part
    os.close(terminal)
    assert process.wait() == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())
    lines = [line for line in re.split(r"[\r\n]+", shown) if line.strip()]
    bars = [line for line in lines if line.startswith(("━", "╸", "╺"))]
    assert bars
    assert all(re.match(r"[━╸╺ ]{10} step \d+ of 400", bar) for bar in bars), bars
    assert any(" left, " in bar for bar in bars)
    assert max(map(len, bars)) <= 80
    assert any(line.startswith("step 100 of 400, ") for line in lines)


INTERRUPTED = """
import runpy, signal, sys
from meta_exp.runs import pictures, train

def interrupt(*arguments, **options):
    signal.raise_signal(signal.{number})

{place} = interrupt
sys.argv = ["train.py", *{arguments!r}]
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("number", "place", "said"),
    [
        ("SIGINT", "train.print_table", "the run is done"),
        ("SIGTERM", "pictures.draw_or_warn", "to go on with its test"),
        ("SIGINT", "train.score_tasks", "to go on with its test"),
    ],
)
def test_a_signal_after_the_training_says_what_is_done(tmp_path, number, place, said):
    arguments = [*SMOKE, "calibrate=null", "logger=none", "hydra.run.dir=run"]
    script = INTERRUPTED.format(number=number, place=place, arguments=arguments, script=str(REPO / "train.py"))
    (tmp_path / "interrupted.py").write_text(script)
    done = commands.run(str(tmp_path / "interrupted.py"), tmp_path)
    assert done.returncode == 128 + getattr(signal, number)
    place = "run/metrics.json" if "the run" in said else "uv run train.py "
    assert done.stdout.splitlines()[-1].startswith(f"{said}: {place}")
    assert done.stdout.splitlines()[-1].endswith(" hydra.run.dir=run") == ("the run" not in said)
    assert done.stderr.splitlines()[-1] == f"ended by {number}"
    assert (tmp_path / "run" / "metrics.json").exists() == ("the run" in said)


def test_damaged_files_of_a_run_that_goes_on_are_named(tmp_path):
    single = [*SMOKE, "logger=none", "hydra.run.dir=run"]
    run = tmp_path / "run"
    assert train(tmp_path, *single).returncode == 0
    (run / "metrics.json").write_text("")
    again = "remove it, and the command that trained the run writes it anew"
    for text, got in (("", "an empty file"), ("[" * 100_000, "maximum recursion depth")):
        (run / "metrics.json").write_text(text)
        result = train(tmp_path, *single)
        assert result.returncode == 1
        last = result.stderr.splitlines()[-1]
        assert last.startswith(f"error: {run / 'metrics.json'}: expected the metrics of a run, got {got}")
        assert again in last
        assert "Traceback" not in result.stderr
    (run / "metrics.json").unlink()
    for size in (0, 1000, (run / "last.ckpt").stat().st_size - 100):
        os.truncate(run / "last.ckpt", size)
        result = train(tmp_path, *single)
        assert result.returncode == 1
        last = result.stderr.splitlines()[-1]
        assert last.startswith(f"error: {run / 'last.ckpt'}: expected a whole checkpoint, got "), last
        assert last.endswith("; remove last.ckpt and best.ckpt, and the same command begins the run anew")
        os.truncate(run / "last.ckpt", 5000)
    (run / "last.ckpt").unlink()
    assert train(tmp_path, *single).returncode == 0


IN_SMALL_DISK = "mount -t tmpfs -o size={size} none disk && exec {command}"


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0,
    reason="a disk of one's own takes unshare, and namespaces of users",
)
@pytest.mark.parametrize("size", ["16k", "64k"])
def test_a_full_disk_is_one_line(tmp_path, size):
    """Whatever of a run meets it first: its config, its log, its checkpoints, its history."""
    (tmp_path / "disk").mkdir()
    command = shlex.join([sys.executable, str(REPO / "train.py"), *SMOKE, "logger=none", "hydra.run.dir=disk/run"])
    words = ["unshare", "-rm", "sh", "-c", IN_SMALL_DISK.format(size=size, command=command)]
    result = commands.finished(words, tmp_path, {**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 1
    assert "Traceback" not in result.stderr + result.stdout, result.stderr
    last = result.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"error: (/.*/)?disk/run/\S+: No space left on device; make room there, and give the same command again", last
    ), last
    assert result.stderr.count("its log has holes") <= 1


def test_same_command_same_numbers(tmp_path):
    results = []
    for name in ("a", "b"):
        assert train(tmp_path, *SMOKE, "logger=none", f"hydra.run.dir={name}").returncode == 0
        metrics = finished(tmp_path / name)
        results.append({key: value for key, value in metrics.items() if "time" not in key and "second" not in key})
    assert results[0] == results[1]


REFUSED = {
    "algorithm.iner_lr=1": "No such key algorithm.iner_lr; did you mean algorithm.inner_lr?",
    "sed=1": "No such key sed; did you mean seed?",
    "shots=5": "No such key shots; did you mean dataset.shots?",
    "model.hidden=[20]": "No such key model.hidden; there are widths, activation",
    "algorithm=mamll": "Could not find 'algorithm/mamll' Available options in 'algorithm': abml anil bmaml boil llama",
    "name=a=b": """name=a=b: expected key=value in Hydra's grammar, got mismatched input '='""",
    "algorithm.inner_lr=0": "algorithm.inner_lr: expected a learning rate > 0, got 0",
    "hydra.run.dir=file/below": "file",
    "optimizer.lr=1e30": "Try a smaller optimizer.lr or trainer.gradient_clip_val=1",
    "algorithm=maml algorithm.inner_lr=1000 algorithm.inner_steps=20": "the inner loop diverges, in step",
}


@pytest.mark.parametrize("override", REFUSED)
def test_one_line_and_exit_code_1(tmp_path, override):
    (tmp_path / "file").write_text("a file where a folder is wanted")
    result = train(tmp_path, *override.split(), "trainer=smoke", "logger=none")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert REFUSED[override] in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("error: ")
    if "algorithm.inner_lr=1000" in override:
        assert "clip" not in result.stderr
    if "optimizer.lr=1e30" in override:  # the last good weights are kept
        (folder,) = (tmp_path / "outputs" / "sinusoid").iterdir()
        state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())
        assert not (folder / "metrics.json").exists()
        assert "FloatingPointError" in (folder / "train.log").read_text()


LITTLE_MEMORY = """
import resource, runpy, sys
import meta_exp.runs.train
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (1024 * used + 10**8,) * 2)
sys.argv = ["train.py", "trainer=smoke", "logger=none", "model.widths=[7000,7000]"]
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell what a process has")
def test_memory_that_is_not_enough_names_the_keys_that_help(tmp_path):
    """A network of 200 MB, where 100 are left."""
    (tmp_path / "little.py").write_text(LITTLE_MEMORY.format(script=str(REPO / "train.py")))
    result = commands.run(str(tmp_path / "little.py"), tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: out of memory (")
    assert "try a smaller chunk_size, down to 1, or checkpoint_steps=true in training, or a smaller model" in last


def test_an_error_is_the_last_word(tmp_path):
    """Also where the interpreter is taken apart, and not a forked process ended."""
    result = typed(tmp_path, *SMOKE, "optimizer.lr=-1")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: optimizer.lr: expected a learning rate > 0, got -1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_asked_for_and_not_there(tmp_path):
    result = train(tmp_path, "trainer.accelerator=gpu", "trainer=smoke", "logger=none")
    assert result.returncode == 1
    assert "trainer.accelerator=gpu: No supported gpu backend found!" in result.stderr.splitlines()[-1]


DATA_REFUSED = {
    "dataset.root=nowhere": r"nowhere/omniglot-py",
    "dataset.ways=2000": "dataset.ways: expected at most",
    "dataset.shots=10": "dataset.shots + dataset.queries: expected at most 20",
}


@pytest.mark.parametrize("override", DATA_REFUSED)
def test_data_refused_before_training(tmp_path, omniglot_root, override):
    result = train(tmp_path, "dataset=omniglot", "algorithm=maml", "trainer=smoke", "logger=none", override)
    assert result.returncode == 1
    assert DATA_REFUSED[override] in result.stderr.splitlines()[-1]
    assert not (tmp_path / "outputs").exists(), "nothing is left of what never began"
    assert "validation NLL" not in result.stdout


def test_help_is_for_people_and_quick(tmp_path):
    result = typed(tmp_path, "--help")
    assert result.returncode == 0
    assert result.stdout.count("uv run train.py") >= 5
    for words in (
        "algorithm: abml, anil, bmaml, boil, llama, llama_paper, llama_predictive, maml,",
        "dataset: csv, harmonic, image_folder, linear, mini_imagenet, omniglot, sinusoid, step",
        "curvature: diagonal, ggn, hessian, kfac, last_layer, none",
    ):
        assert words in result.stdout


def test_config_is_shown_without_running(tmp_path):
    result = typed(tmp_path, "--cfg", "job", "algorithm=maml")
    assert yaml.safe_load(result.stdout)["algorithm"]["_target_"] == "meta_exp.algorithms.MAML"
    assert not (tmp_path / "outputs").exists()


def test_tab_completion(tmp_path):
    line = "train.py algorithm="
    result = typed(tmp_path, "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert {"algorithm=maml", "algorithm=llama"} <= set(result.stdout.split())


@pytest.mark.parametrize(("ends", "code"), [("pass", 0), ("sys.exit(3)", 3), ("raise ValueError('no')", 1)])
def test_a_command_that_is_done_ends_at_once(ends, code):
    """What waits for the end is called, in full; the interpreter is taken apart only after a failure."""
    script = f"""
import atexit, sys
from meta_exp import cli

class Late:
    def __del__(self):
        print("taken apart")

def command():
    atexit.register(print, "registered")
    {ends}

late = Late()
cli.run(command)
"""
    done = commands.finished([sys.executable, "-c", script])
    assert done.returncode == code
    assert done.stdout.splitlines() == ["registered"] + ["taken apart"] * (code != 0)


def test_home_and_an_empty_folder_of_data(tmp_path):
    """A shell leaves ~ as it is behind a =, and an empty variable is as good as none."""
    script = """
import os, sys
from meta_exp import cli
cli.run(lambda: print(*sys.argv[1:], os.environ.get("META_EXP_DATA"), sep="|"))
"""
    command = [sys.executable, "-c", script, "hydra.run.dir=~/a b", "x=~", "~seed", "a=b~c", "~/run"]
    variables = {**os.environ, "HOME": str(tmp_path), "META_EXP_DATA": "", "PYTHONPATH": str(REPO)}
    done = commands.finished(command, tmp_path, variables)
    assert done.stdout == f"hydra.run.dir={tmp_path}/a b|x={tmp_path}|~seed|a=b~c|{tmp_path}/run|None\n"


def test_what_is_imported_stays_and_what_a_job_leaves_does_not():
    script = """
import gc, sys, weakref
from meta_exp import cli

class Node:
    pass

def job():
    with cli.quick_imports():
        import xml.dom.minidom
    node = Node()
    node.itself = node
    return weakref.ref(node)

first = job()
frozen = gc.get_freeze_count()
second = job()
assert frozen > 1000 and gc.get_freeze_count() == frozen and gc.isenabled()
gc.collect()
assert first() is None and second() is None
"""
    done = commands.finished([sys.executable, "-c", script])
    assert done.returncode == 0, done.stderr
