"""docs/extend.md, run as it stands: its files in a folder outside the package, its commands as real processes.

A data set, a network, an algorithm, a curvature, a likelihood and a score of one's own are trained, killed, continued,
swept, evaluated, loaded and used.
"""

import json
import os
import re
import shlex
import signal
import sys
from functools import partial
from pathlib import Path

import commands
import pytest
import torch
from oracles import assert_equal, dense_jacobian, initial, mlp, noise_covariance, output_hessian, vector

from meta_exp.likelihoods import Gaussian
from meta_exp.tasks.episode import Examples

REPO = Path(__file__).parents[1]
PAGE = (REPO / "docs" / "extend.md").read_text()
FILES = {m[1]: m[2] for m in re.finditer(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL)}
TYPED = [shlex.split(line) for line in re.findall(r"^\$ uv run (.*)$", PAGE, re.MULTILINE)]
PARTS = ("waves", "nets", "sign", "isotropic", "relative", "near")
QUICK = ["trainer=smoke", "logger=none", "test_tasks=10", "validation_tasks=5", "samples=3", "evaluation_steps=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds my_package."""
    place = tmp_path_factory.mktemp("outside")
    for name, text in FILES.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    return place


def command(script):
    [words] = [words for words in TYPED if words[0] == script]
    return words[1:]


def test_files_are_small_and_whole():
    assert set(FILES) == {"use.py", *(f"my_package/{name}.py" for name in PARTS)}
    assert all(text.count("\n") <= 45 for text in FILES.values())


def test_train_kill_continue_evaluate_load(folder):
    """Killed at step 4 and continued, it ends as one that was not; then the table, a new task and a load."""
    long = [*command("train.py"), *QUICK, "trainer.max_steps=60", "trainer.val_check_interval=20", "compile=false"]
    long += ["callbacks.last.every_n_steps=1"]
    words = [sys.executable, str(REPO / "train.py"), *long, "hydra.run.dir=run"]
    with commands.begun(words, folder, {**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        commands.wait_for(lambda: "step 20 of" in process.stdout, "step 20", process)
        process.send(signal.SIGKILL)
        process.wait()
    assert not (folder / "run" / "metrics.json").exists()
    train = partial(commands.run, "train.py", folder)
    again = train(*long, "hydra.run.dir=run")
    assert again.returncode == 0, again.stderr
    assert re.search(r"continued from step \d+ of 60", again.stdout)
    whole = train(*long, "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr
    weights = [torch.load(folder / n / "last.ckpt", weights_only=True)["state_dict"] for n in ("run", "whole")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert (metrics["algorithm"], metrics["dataset"], metrics["curvature"]) == ("SignMAML", "Waves", "Isotropic")
    assert 0 <= metrics["test/linearized/near"] <= 1
    assert "trust" not in (folder / "run" / "config.yaml").read_text()

    evaluate = partial(commands.run, "evaluate.py", folder)
    refused = evaluate("run")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: run/config.yaml: ")
    assert refused.stderr.splitlines()[-1].endswith("add trust=[my_package]")
    table = evaluate("run", "trust=[my_package]")
    assert table.returncode == 0, table.stderr
    assert "near" in table.stdout
    lines = [line.split(",") for line in (folder / "run" / "results.csv").read_text().splitlines()]
    assert float(dict(zip(*lines, strict=True))["test/map/near"]) == metrics["test/map/near"]
    wider = evaluate("run", "scores.near.tolerance=100", META_EXP_TRUST="my_package")
    assert "1 ± 0" in wider.stdout, wider.stderr
    (folder / "seen.csv").write_text("0.1,0.2,0.3\n0.5,-0.2,0.1\n")
    (folder / "ask.csv").write_text("0.3,0.1\n")
    new = evaluate("run", "support=seen.csv", "query=ask.csv", "trust=my_package")
    assert new.returncode == 0, new.stderr
    used = commands.finished([sys.executable, "use.py"], folder, {**os.environ, "PYTHONPATH": str(REPO)})
    assert used.returncode == 0, used.stderr
    assert used.stdout.count("[") == 2


def test_a_sweep_and_its_table(folder):
    sweep = commands.run("train.py", folder, "-m", *command("train.py"), *QUICK, "seed=0,1")
    assert sweep.returncode == 0, sweep.stderr
    folders = [path.name for path in (folder / "outputs" / "waves_sweep").glob("*/")]
    assert len(folders) == 2
    assert all("trust" not in name for name in folders)
    table = commands.run("evaluate.py", folder, "outputs/waves_sweep", "trust=[my_package]")
    assert table.returncode == 0, table.stderr
    assert "2 seeds" in table.stdout


def test_refused_before_training(folder):
    words = [word for word in command("train.py") if not word.startswith("trust")]
    result = commands.run("train.py", folder, *words, *QUICK, "hydra.run.dir=refused")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert result.stderr.splitlines()[-1].endswith("if you know this code and trust it, add trust=[my_package]")
    assert not (folder / "refused" / "config.yaml").exists()


def test_the_curvature_is_what_it_says(folder, monkeypatch):
    """H = (tau + c) I with c the mean diagonal of the dense GGN; variances and draws are those of it."""
    monkeypatch.syspath_prepend(str(folder))
    from my_package.isotropic import Isotropic
    from my_package.relative import Relative

    torch.manual_seed(0)
    model, x = mlp(outputs=2), torch.randn(4, 2).double()
    params = initial(model)
    jacobian = dense_jacobian(model, params, x)
    weights = output_hessian(Gaussian(0.5), model(x))
    c = torch.einsum("ncp,ncd,ndp->p", jacobian, weights, jacobian).mean()
    posterior = Isotropic(model, (2,), 0.3).posterior(params, Examples(x, None), Gaussian(0.5), {})
    count = vector(params).numel()
    assert_equal(posterior.log_det_ratio(), count * torch.log1p(c / 0.3))
    assert_equal(noise_covariance(posterior, params), torch.eye(count).double() / (c + 0.3))
    assert_equal(posterior.functional_variance(x), jacobian @ jacobian.mT / (c + 0.3))

    f, y = torch.randn(5, 1).double(), torch.randn(5, 1).double()
    normal = torch.distributions.Normal(f, 0.1 + 0.1 * f.abs())
    assert_equal(Relative().nll(f, y), -normal.log_prob(y).sum())
    draws = torch.distributions.Normal(f, 0.1 + 0.1 * f.abs()).sample((2000,))
    f.requires_grad_()
    gradients = torch.stack([torch.autograd.grad(Relative().nll(f, y), f)[0] for y in draws])
    fisher = Relative().hessian_sqrt(f).detach() ** 2
    assert ((gradients**2).mean(0) / fisher[:, 0] - 1).abs().max() < 0.2
