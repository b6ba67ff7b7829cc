"""The committed sweeps, and the engines that run their jobs side by side: real processes, real results."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import commands
import pytest
from commands import wait_for
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.utils import instantiate
from omegaconf import OmegaConf

from meta_exp.runs.build import build
from meta_exp.runs.sweep import Watch, count_jobs

REPO = Path(__file__).parents[2]
JOBS = {
    "maml_vs_llama": 2 * 5,
    "omniglot_maml_vs_llama": 2 * 3,
    "curvature_ablation": 4 * 3,
    "omniglot_curvature_ablation": 4 * 2,
    "eta_ablation": 6 * 3,
    "tau_ablation": 5 * 3,
    "shots": 2 * 5 * 3,
}
BY_COMMAND = ("choices", "run_dir", "run_name", "run_title")
SMALL = ["trainer=smoke", "model.widths=[4]", "test_tasks=2", "validation_tasks=2", "samples=2", "logger=none"]


def begin(folder: Path, *arguments: str, after: Sequence[str] = ()) -> AbstractContextManager[commands.Process]:
    """Start train.py in ``folder`` with one thread, speaking to this machine only."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    command = [sys.executable, REPO / "train.py", *arguments, *SMALL, *after]
    return commands.begun(command, folder, variables)


def sweep(folder: Path, *arguments: str, after: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run train.py as ``begin`` starts it, to its end."""
    with begin(folder, *arguments, after=after) as process:
        return process.finish()


def logged(folder: Path, pattern: str) -> list[str]:
    """What the logs of the runs below ``folder`` hold of ``pattern``."""
    files = sorted(folder.glob("outputs/*_sweep/*/train.log"))
    return [found for file in files for found in re.findall(pattern, file.read_text())]


def results(folder: Path) -> list[dict]:
    """The metrics of the runs of the one sweep below ``folder``."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("outputs/*_sweep/*/metrics.json"))]


@pytest.mark.parametrize("name", JOBS)
def test_an_experiment_is_a_sweep_whose_first_and_last_jobs_build(config, name):
    text = (REPO / "conf" / "experiment" / f"{name}.yaml").read_text()
    assert f"uv run train.py experiment={name}" in text.splitlines()[1]
    config(f"experiment={name}")
    hydra = HydraConfig.get()
    assert hydra.mode.name == "MULTIRUN"
    overrides = [f"{key}={value}" for key, value in hydra.sweeper.params.items()]
    [jobs] = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)
    assert len(jobs) == JOBS[name]
    for job in (jobs[0], jobs[-1]):
        learner = build(config(f"experiment={name}", *job)).learner
        assert learner.algorithm.curvature is not None


@pytest.mark.parametrize("name", ["maml_vs_llama", "omniglot_maml_vs_llama", "shots"])
def test_maml_and_llama_differ_in_the_algorithm_alone(config, name):
    found = []
    for algorithm in ("maml", "llama"):
        cfg = OmegaConf.to_container(config(f"experiment={name}", f"algorithm={algorithm}", "seed=1"), resolve=True)
        cfg["algorithm"] = {key: cfg["algorithm"][key] for key in ("inner_lr", "inner_steps", "first_order")}
        found.append({key: value for key, value in cfg.items() if key not in BY_COMMAND})
        found[-1].pop("callbacks"), found[-1].pop("logger")  # they name the run's folder
    assert found[0] == found[1]


def test_a_search_with_two_jobs_of_joblib_at_a_time_goes_on_after_a_kill(tmp_path):
    """The kill is of the command alone; its workers notice, save and end."""
    command = ["experiment=search", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_trials=2"]
    long = ["trainer.max_steps=400", "trainer.val_check_interval=20", "dataset.meta_batch=2"]
    with begin(tmp_path, *command, after=long) as process:
        wait_for(lambda: len(logged(tmp_path, "step 20 of")) == 2, "step 20 of both jobs", process)
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        wait_for(lambda: not process.left(), "its workers to end", process)
    saved = logged(tmp_path, r"step (\d+): saved on SIGTERM")
    result = sweep(tmp_path, *command, after=long)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert logged(tmp_path, r"continued from step (\d+) of 400") == saved
    found = OmegaConf.load(tmp_path / "outputs" / "search_sweep" / "optimization_results.yaml")
    losses = [run["validation/served_nll"] for run in results(tmp_path)]
    assert len(losses) == len(saved) == 2
    assert found.best_value == min(losses)
    keys = {"algorithm.inner_lr", "optimizer.lr", "algorithm.eta", "curvature.prior_precision"}
    assert set(found.best_params) == keys
    assert not list(tmp_path.glob("outputs/search_sweep/.sweep-*")), "the board of the killed command is gone"


@pytest.mark.skipif(not importlib.util.find_spec("submitit"), reason="submitit is not installed: uv sync --extra slurm")
def test_submitit_runs_a_sweep_on_this_machine(tmp_path):
    result = sweep(tmp_path, "experiment=maml_vs_llama", "seed=3", "dataset.shots=4", "hydra/launcher=submitit_local")
    assert result.returncode == 0, result.stderr
    found = results(tmp_path)
    assert [(run["algorithm"], run["seed"]) for run in found] == [("llama", 3), ("maml", 3)], "keys behind it count"
    assert all("test/sample/nll" in run for run in found), "MAML has a posterior too"


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed: uv sync --extra ray")
def test_ray_runs_a_sweep_on_this_machine(tmp_path):
    ray = [
        "hydra/launcher=ray",
        "+hydra.launcher.ray.init.num_cpus=2",
        "+hydra.launcher.ray.init._node_ip_address=127.0.0.1",
    ]
    result = sweep(tmp_path, "-m", "algorithm=maml,llama", *ray)
    assert result.returncode == 0, result.stderr
    assert [run["algorithm"] for run in results(tmp_path)] == ["llama", "maml"]


@pytest.mark.skipif(not importlib.util.find_spec("submitit"), reason="submitit is not installed: uv sync --extra slurm")
def test_slurm_jobs_ask_for_one_gpu_and_are_requeued(config, tmp_path, monkeypatch):
    """What sbatch would be given, written by submitit; where there is no SLURM a file stands for srun."""
    from submitit import SlurmExecutor

    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    config("hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu")
    Plugins.instance()
    launcher = instantiate(HydraConfig.get().launcher, submitit_folder=str(tmp_path / "%j"), name="sweep")
    settings = dict(launcher.params)
    executor = SlurmExecutor(settings.pop("submitit_folder"), max_num_timeout=settings.pop("max_num_timeout"))
    assert executor.max_num_timeout == 100
    executor.update_parameters(**executor._convert_parameters(settings))
    lines = executor._make_submission_file_text("python job", "uid").splitlines()
    for flag in (
        "--partition=gpu", "--gpus-per-node=1", "--cpus-per-task=4", "--mem=16GB", "--time=240", "--signal=USR2@120",
        "--requeue", "--job-name=sweep", "--open-mode=append",
    ):  # fmt: skip
        assert f"#SBATCH {flag}" in lines
    assert "export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK" in lines


SLURM = {  # one job, numbered 7, as SLURM would handle it
    "sbatch": "cp ${@: -1} batch; echo Submitted batch job 7; SLURM_JOB_ID=7 setsid bash batch >/dev/null 2>&1 &",
    "srun": 'while [[ $1 == --* ]]; do [[ $1 == --unbuffered ]] || shift; shift; done; echo $$ >pid; exec "$@"',
    "scontrol": 'echo "$@" >>requeued; (sleep 1; SLURM_JOB_ID=7 setsid bash batch >/dev/null 2>&1) &',
    "sacct": "printf 'JobID|State|NodeList\\n7|RUNNING|here\\n'",
}


@pytest.mark.skipif(not importlib.util.find_spec("submitit"), reason="submitit is not installed: uv sync --extra slurm")
def test_a_preempted_slurm_job_enters_the_queue_again_and_finishes(tmp_path, monkeypatch):
    """SLURM's commands are scripts here; submitit, its signal handlers and the run are real.

    SIGTERM alone, as when a preemption begins; then SIGTERM and SIGUSR2 together; then SIGUSR2 alone.
    """
    for name, script in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\ncd {tmp_path}\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    long = ["trainer.max_steps=700", "trainer.val_check_interval=50", "dataset.meta_batch=1"]

    def train_on() -> None:
        """Wait for two more validations."""
        goal = len(logged(tmp_path, "step .* left")) + 2
        wait_for(lambda: len(logged(tmp_path, "step .* left")) >= goal, "two more validations", waiting)

    def send(*signals: signal.Signals) -> None:
        for number in signals:
            os.kill(int((tmp_path / "pid").read_text()), number)

    with begin(tmp_path, "-m", "seed=0", "hydra/launcher=submitit_slurm", after=long) as waiting:
        train_on()
        send(signal.SIGTERM)
        wait_for(lambda: logged(tmp_path, "saved on SIGTERM"), "the first save", waiting)
        train_on()
        send(signal.SIGTERM, signal.SIGUSR2)
        wait_for(lambda: logged(tmp_path, "continued from step"), "the job's second start", waiting)
        train_on()
        send(signal.SIGUSR2)
        result = waiting.finish()
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "requeued").read_text() == "requeue 7\n" * 2
    assert logged(tmp_path, r"saved on (\w+)")[0] == "SIGTERM"
    assert logged(tmp_path, r"step (\d+): saved on SIGUSR2") == logged(tmp_path, r"continued from step (\d+) of 700")
    assert [run["steps"] for run in results(tmp_path)] == [700]


def test_a_launcher_that_is_not_installed_names_its_extra(tmp_path):
    code = (
        "import pkgutil, runpy, sys\n"
        "found = pkgutil.walk_packages\n"
        "pkgutil.walk_packages = lambda *a, **k: (m for m in found(*a, **k) if 'ray' not in m.name)\n"
        "sys.argv = ['train.py', '-m', 'seed=0', 'hydra/launcher=ray']\n"
        f"runpy.run_path({str(REPO / 'train.py')!r}, run_name='__main__')\n"
    )
    result = commands.finished([sys.executable, "-c", code], tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "error: this launcher is not installed; it comes with uv run --extra ray train.py ..."
    )


APP = """
import sys
import hydra
from meta_exp import cli
from meta_exp.runs import sweep

def broken(*arguments, **options):
    raise {error}

{place} = broken

@hydra.main(version_base="1.3", config_path={folder!r}, config_name="app")
def main(cfg):
    print("job", cfg.seed, flush=True)
    if cfg.seed == 1:
        raise ValueError("a job that fails")
    return 0.0

cli.run(main)
"""
CONFIG = """
seed: 0
hydra:
  sweep: {dir: swept}
  callbacks: {sweep: {_target_: meta_exp.runs.sweep.SweepReport}}
  output_subdir: null
"""
PLACES = [
    "nothing", "sweep.count_jobs", "sweep.Watch", "sweep.Watch._jobs", "sweep.Watch.line",
    "sweep._print_table", "sweep._post", "sweep._read", "sweep.shutil.rmtree",
    "sweep.SweepReport.on_job_end", "sweep.SweepReport.on_multirun_start",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_failed_job_is_exit_code_1_whatever_fails_in_the_report(tmp_path, place):
    (tmp_path / "app.yaml").write_text(CONFIG)
    error = "OSError(28, 'No space left on device')" if len(place) % 2 else "AssertionError"
    script = APP.format(place=place, folder=str(tmp_path), error=error)

    def app(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, "-m", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)

    result = app("seed=0,1,2")
    assert result.returncode == 1
    assert [line for line in result.stdout.splitlines() if line.startswith("job")] == ["job 0", "job 1", "job 2"]
    assert "a job that fails" in result.stdout + result.stderr or "report failed" in result.stderr
    if place == "nothing":
        assert app("seed=0,2").returncode == 0
        (tmp_path / "option").mkdir()
        (tmp_path / "option" / "a.yaml").write_text("x: 1")
        empty = app("+option=glob(b*)")
        assert (empty.returncode, empty.stderr) == (1, "sweep: no job was started\n")


@pytest.mark.parametrize("lost", ["a file", "the board"])
def test_a_job_that_the_board_lost_is_not_done(tmp_path, lost):
    watch = Watch(tmp_path / "board", None)
    for number in range(3):
        (tmp_path / "board" / f"{number}.json").write_text('{"folder": "run", "state": "done"}')
    (tmp_path / "board" / "1.json").unlink()
    if lost == "the board":
        shutil.rmtree(tmp_path / "board")
    watch.thread.start()
    assert not watch.close()


JOBS_OF = {
    "curvature=glob(*)": 6,
    "curvature=glob(*,exclude=[n*,k*])": 4,
    "seed=range(5)": 5,
    "seed=1,2,3": 3,
    "seed='choice(1,2)'": 1,
    "seed=choice(1,2)": 2,
    "seed=5": 1,
    "seed=interval(0,1)": None,
    "seed=shuffle(1,2,3)": 3,
}


@pytest.mark.parametrize("override", JOBS_OF)
def test_jobs_are_counted_as_hydra_makes_them(override):
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        task, sweeper = [override, "algorithm=maml,llama"], {"_target_": "a.BasicSweeper", "params": None}
        hydra = {"sweeper": sweeper, "overrides": {"task": task}}
        expected = JOBS_OF[override]
        assert count_jobs(OmegaConf.create({"hydra": hydra})) == (expected and 2 * expected)


def test_a_glob_with_a_failing_job_ends_with_1_and_its_table(tmp_path):
    result = sweep(tmp_path, "-m", "algorithm=llama", "curvature=glob(d*)", "optimizer.lr=1e30")
    assert result.returncode == 1
    assert "of 1 done" in result.stdout
    assert "objective is" in result.stdout
