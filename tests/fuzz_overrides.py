"""Bad words to train.py and evaluate.py: each is refused in one line that names its key, or makes sense.

    python tests/fuzz_overrides.py                     every key with every value, pairs, folders and files: an hour
    python tests/fuzz_overrides.py --cases 200         so many of them, drawn with --seed
    python tests/fuzz_overrides.py --match dataset.    those whose words contain it

Every key of the composed configs meets values of the wrong type and sign, beyond bounds, empty, null, lists and unknown
names, and so do pairs of keys; evaluate.py gets the same for its overrides, and damaged folders and files. Each case is
a process forked from one that has everything imported, with a bound on its time and memory. A case fails by a
traceback, a hang, a crash after the training, a refusal without its key, or by being accepted although senseless: what
of a key's values makes sense is said by the key's default and the tables below. ``tests/test_fuzz.py`` runs a sample.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import commands

from meta_exp.terminal import plain

REPO = Path(__file__).parents[1]
TINY = (  # what an accepted run takes: two steps of a small network
    "trainer.max_steps=2 trainer.val_check_interval=2 trainer.log_every_n_steps=1 test_tasks=2 validation_tasks=2 "
    "samples=2 conformal_tasks=20 evaluation_steps=2 compile=false dataset.meta_batch=2 dataset.queries=2"
).split()
BASES = {  # configs whose keys are tried, the first that has one
    "sinusoid": ["algorithm=llama", "dataset.shots=3", "model.widths=[4]"],
    "csv": ["algorithm=maml", "model.widths=[4]", "optimizer=sgd", "logger=csv"],
    "tensorboard": ["algorithm=llama_predictive", "model.widths=[4]", "logger=tensorboard"],
    "hessian": ["algorithm=llama", "curvature=hessian", "model.widths=[2]"],
    "kfac": ["algorithm=llama", "curvature=kfac", "model.widths=[4]", "dataset=harmonic"],
    "step": ["algorithm=llama", "dataset=step", "model.widths=[4]", "likelihood=heteroscedastic"],
    "linear": ["algorithm=llama", "lr_schedule=cosine", "dataset=linear", "model.widths=[4]"],
    "wandb": ["dataset.shots=3", "model.widths=[4]", "logger=wandb"],
    "omniglot": ["dataset=omniglot", "algorithm=maml", "likelihood=probit", "model.filters=2"],
}
BASES |= {  # and every algorithm
    file.stem: [f"algorithm={file.stem}", "model.widths=[4]"]
    for file in sorted((REPO / "conf/algorithm").glob("*.yaml"))
}
ANY = ["abc", "''", "", "null", "true", "[]", "[1,2]", "[abc]", "{a:1}", "???", "${nothing}"]
NUMBERS = ["0", "-1", "1.5", "1e2", "-1e30", "1e30", "1e-30", "inf", "nan", "99999999999999999999", "2147483648"]
WORDS = ["../x", "/", "a b", "5", "x" * 300, "'a\nb'", "~", "$HOME"]
OPTIONAL = (  # keys that null is a value of
    "num_tasks evaluation_steps hyper_lr calibrate chunk_size algorithm.eta curvature.probes trainer.gradient_clip_val "
    "trainer.gradient_clip_algorithm callbacks.last.every_n_steps callbacks.last.every_minutes logger.wandb.entity "
    "logger.csv.name logger.csv.version run_name run_title optimizer.fused experiment logger.wandb.name "
    "curvature.prior_precision"
).split()
FROM_ZERO = (  # and 0
    "seed split_seed warmup final eta noise every_minutes momentum algorithm.inner_steps x_range level edge slope "
    "intercept phase amplitude frequency curvature.seed logger.csv.version multi_step first_order_until"
).split()
NEGATIVE = ["trainer.devices", "logger.csv.version", "run_title"]  # -1: all; and a title may be any text
LISTS = ["model.widths", "predictives", "trainer.devices", "logger.wandb.tags"]
WORDY = (  # keys whose value is a word of the user's
    "name logger.wandb.project logger.wandb.save_dir logger.wandb.id logger.wandb.group logger.wandb.job_type "
    "logger.wandb.entity logger.wandb.tags logger.csv.save_dir logger.csv.name logger.csv.version "
    "logger.tensorboard.save_dir dataset.root trust run_title logger.wandb.name"
).split()
SECONDS, BYTES = 60, 12 * 2**30  # of CPU time; of addresses
PATIENCE_S, STEP_S = 240.0, 0.1  # without this much CPU time it hangs


@dataclass(frozen=True)
class Case:
    """Words of a command: those that it needs, and those that are tried."""

    script: str
    needed: tuple[str, ...]
    tried: tuple[str, ...]
    keys: tuple[str, ...]
    defaults: tuple[Any, ...] = ()

    def __str__(self) -> str:
        """The words that are tried, and the command."""
        return f"{self.script} {' '.join(map(repr, self.tried))}   [{' '.join(self.needed)}]"


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit code, or None where it was killed, and what it said and wrote."""

    code: int | None
    stdout: str
    stderr: str
    metrics: dict[str, Any] | None


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys with their values."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from flat(value, f"{prefix}.{key}".lstrip("."))
    else:
        yield prefix, node


def training_cases(pairs: int, seed: int) -> list[Case]:
    """Return a case for each key and value, and ``pairs`` of two keys each."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    cases: list[Case] = []
    known: set[tuple[str, Any]] = set()
    chance = random.Random(seed)
    for base, choices in BASES.items():
        if base == "omniglot" and not os.environ.get("META_EXP_DATA"):
            continue
        logger = [] if any(word.startswith("logger=") for word in choices) else ["logger=none"]
        needed = (*choices, *logger, *TINY)
        with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
            cfg: Any = OmegaConf.to_container(compose("train", list(needed)), resolve=False)
        own: list[Case] = []
        for key, default in flat(cfg):
            group = key.partition(".")[0]
            which = cfg[group].get("_target_") if isinstance(cfg[group], dict) else None
            if (key, which) in known:
                continue
            known.add((key, which))
            tries = [f"{key}={value}" for value in values(key, default)] + [f"~{key}", f"+{key}.more=1"]
            own += [Case("train.py", needed, (word,), (key,), (default,)) for word in tries]
        groups = [group for group, node in cfg.items() if isinstance(node, dict)]
        for group in groups:
            for word in (
                f"+{group}.unknown=1",
                f"{group}.unknown=1",
                f"{group}=null",
                f"{group}=unknown",
                f"{group}=5",
            ):
                if (word, None) not in known:
                    known.add((word, None))
                    own.append(Case("train.py", needed, (word,), (group,), ({},)))
        cases += own
        for _ in range(pairs if len({case.keys for case in own}) > 1 else 0):
            one = chance.choice(own)
            two = chance.choice([case for case in own if case.keys != one.keys])
            tried, keys, defaults = (one.tried + two.tried, one.keys + two.keys, one.defaults + two.defaults)
            cases.append(Case("train.py", needed, tried, keys, defaults))
    return cases


def values(key: str, default: Any) -> list[str]:
    """Return what is tried in place of a key's default."""
    found = list(ANY)
    numeric = isinstance(default, int | float) and not isinstance(default, bool)
    if numeric or default is None:
        found += NUMBERS
    elif isinstance(default, list):
        found += ["[0]", "[-1]", "[1e30,1]", "[1,2,3]", "[null]", "[1,1]", "[nan,1]", "[99999999999999999999]", "5"]
        found += [f"[{default[0]},{default[0]}]"] if default else []
    elif isinstance(default, bool):
        found += ["0", "2", "-1", "maybe"]
    else:
        found += [*WORDS, "0", "-1", "1e30"]
    return found


def evaluation_cases(runs: dict[str, Path], place: Path, seed: int) -> list[Case]:
    """Return cases for evaluate.py: overrides of each key of a run, the keys of a new task, damaged folders."""
    import yaml

    cases: list[Case] = []
    for run in runs.values():
        config = yaml.safe_load((run / "config.yaml").read_text())
        for key, default in flat(config):
            few = key.partition(".")[0] in ("trainer", "callbacks", "logger") or run is not runs["sinusoid"]
            tries = ["abc"] if few else values(key, default)  # all for what a trained run may change
            cases += [Case("evaluate.py", (str(run),), (f"{key}={value}",), (key,), (default,)) for value in tries]
        for word in (
            "unknown=1",
            "=5",
            "a b=1",
            "test_tasks",
            "test_tasks==2",
            "~test_tasks",
            "+unknown=1",
            "--unknown",
        ):
            cases.append(Case("evaluate.py", (str(run),), (word,), (word.strip("+~-=").partition("=")[0],), ({},)))
    run = runs["sinusoid"]
    table, words, binary, empty = (place / name for name in ("table.csv", "words.csv", "binary.csv", "empty.csv"))
    table.write_text("x,y\n0.5,1\n1.5,-1\n2,3\n")
    words.write_text("one two three\nfour\n")
    binary.write_bytes(random.Random(seed).randbytes(500))
    empty.touch()
    (place / "ask.csv").write_text("x\n0.5\n")
    good = ("support=table.csv", "query=ask.csv", "kind=map", "output=out.csv")
    strange = [
        "",
        "abc",
        ".",
        "/",
        "-",
        "..",
        "null",
        "[1]",
        "words.csv",
        "binary.csv",
        "empty.csv",
        "table.csv/x",
        "/dev",
    ]
    for key in ("support", "query", "kind", "output"):
        rest = tuple(word for word in good if not word.startswith(f"{key}="))
        for value in strange:
            cases.append(Case("evaluate.py", (str(run), *rest), (f"{key}={value}",), (key,), ("",)))
        cases.append(Case("evaluate.py", (str(run),), (f"{key}=table.csv",), (key,), ("",)))
    for word in (
        "",
        "abc",
        "table.csv",
        ".",
        "/dev",  # the whole machine's files would be the user's own wish
        "/dev/null",
        "binary.csv",
        "empty.csv",
        "-",
        "table.csv/x",
        "\x1b[2J",
    ):
        cases.append(Case("evaluate.py", (), (word,), ("RUN",), ("",)))
    cases += damaged(runs, place / "damaged", seed)
    return cases


def damaged(runs: dict[str, Path], place: Path, seed: int) -> list[Case]:
    """Return cases with folders of runs a file of which is not as it was written."""
    chance = random.Random(seed)
    cases = []
    for name, run in runs.items():
        for file in sorted(path for path in run.iterdir() if path.is_file() and path.name != ".lock"):
            data = file.read_bytes()
            cut = chance.randrange(len(data)) if data else 0
            flipped = bytearray(data)
            for _ in range(8):
                if flipped:
                    flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
            harms = {
                "empty": b"",
                "cut": data[:cut],
                "flipped": bytes(flipped),
                "noise": chance.randbytes(200),
                "null": b"null",
                "list": b"[1, 2]",
                "deep": b"[" * 5000 + b"]" * 5000,
                "aliases": b"a: &a [1]\nb: [*a, *a]\n",
                "missing": None,
                "folder": None,
            }
            for harm, content in harms.items():
                folder = place / f"{name}-{file.name}-{harm}"
                shutil.copytree(run, folder)
                (folder / file.name).unlink()
                if harm == "folder":
                    (folder / file.name).mkdir()
                elif content is not None:
                    (folder / file.name).write_bytes(content)
                cases.append(Case("evaluate.py", (), (str(folder),), (str(folder),), ("",)))
    return cases


def attempt(case: Case, place: Path) -> Outcome:
    """Run a case in a forked process, in a folder of its own for training, within bounds."""
    folder = Path(tempfile.mkdtemp(dir=place)) if case.script == "train.py" else place
    said = [place.with_name(f"{place.name}-{os.getpid()}-{stream}") for stream in ("stdout", "stderr")]
    for file in said:
        file.write_text("")
    words = [*case.needed, *case.tried]
    if case.script == "train.py" and not any(word.startswith("hydra.run.dir=") for word in words):
        words.append(f"hydra.run.dir={folder}/run")
    child = os.fork()
    if not child:
        _be(case.script, words, folder, said)
    code: int | None = None
    worked, since = 0.0, time.monotonic()
    while time.monotonic() - since < PATIENCE_S:  # without getting on, which a busy machine may keep it from for long
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.02)
        if time.monotonic() - since > PATIENCE_S / 10 and (now := commands._cpu_s(child)) > worked + STEP_S:
            worked, since = now, time.monotonic()
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if code is None:
        os.waitpid(child, 0)
    stdout, stderr = (file.read_text(errors="replace") for file in said)
    metrics = None
    if case.script == "train.py":
        written = list(folder.glob("**/metrics.json"))
        metrics = json.loads(written[0].read_text()) if written else None
        shutil.rmtree(folder)
    return Outcome(None if code is not None and code < 0 else code, stdout, stderr, metrics)


def _be(script: str, words: Sequence[str], folder: Path, said: Sequence[Path]) -> None:
    """Be the command, and end."""
    import atexit
    import runpy

    code: Any = 0
    try:
        os.setsid()
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        for stream, file in enumerate([os.devnull, *said]):
            os.dup2(os.open(file, os.O_RDWR | os.O_APPEND), stream)
        os.environ.update({"COLUMNS": "200", "WANDB_MODE": "offline"})
        sys.argv = [str(REPO / script), *words]
        if script == "train.py":  # a picture that fails is a line of the log, and takes longer than all the rest
            from meta_exp.runs import pictures

            pictures.draw = lambda *arguments: []  # type: ignore[assignment]
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        code = traceback.format_exc()
    with suppress(BaseException):
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(int(code))


def fault(case: Case, outcome: Outcome) -> str | None:
    """Return what is wrong with how a case ended, or None."""
    if outcome.code is None:
        return "killed: it hangs, or dies of memory or a signal"
    if "Traceback" in outcome.stdout + outcome.stderr:
        return "traceback"
    if "\x1b" in outcome.stdout + outcome.stderr:
        return "escapes"
    if outcome.code == 0:
        return None if case.defaults == ("",) else _senseless(case, outcome)
    lines = outcome.stderr.strip().splitlines() or [""]
    if case.script == "train.py" and (outcome.metrics is not None or "step 2 of 2" in outcome.stdout):
        return "crash after training"
    if outcome.code == 2 and "usage:" in outcome.stderr:
        return None
    last = lines[-1]
    if not last.startswith("error: "):
        left_out = [line for line in outcome.stdout.splitlines() if line.startswith("left out: ")]
        if case.script == "evaluate.py" and left_out:
            return None
        return "no line that says what is wrong"
    named = [key for key in case.keys if _names(last, key)]
    named += [word for word in case.tried if word in last or plain(word) in last]
    values = [word.partition("=")[2] for word in case.tried]
    named += [value for value in values if len(value) > 20 and value in last]  # a file's name
    if case.script == "evaluate.py":
        named += [value for value in values if value and value in last]
    return None if named else "its key is not named"


def _names(line: str, key: str) -> bool:
    """Whether a line names the key, or a part of the config in which it stands."""
    return re.search(rf"(?<![\w.]){re.escape(key)}(?![\w])", line) is not None


def _senseless(case: Case, outcome: Outcome) -> str | None:
    """Return why what was accepted makes no sense, or None where it does."""
    for word, key, default in zip(case.tried, case.keys, case.defaults, strict=True):
        if word[0] in "~+":
            if "." in key and word[0] == "~":  # a constructor's own default stands in
                continue
            return None if key in OPTIONAL or word[0] == "~" else "an unknown key is accepted"
        value = word.partition("=")[2]
        end = key.rpartition(".")[2]

        def among(names: Sequence[str], key: str = key, end: str = end) -> bool:
            return key in names or end in names

        if value in ("null", "", "''") and not (among(OPTIONAL) or among(WORDY) or default is None):
            return f"{value!r} is accepted"
        if value == "null" or isinstance(default, dict):
            continue
        if value in ("inf", "nan", "99999999999999999999", "???", "{a:1}", "${nothing}"):
            return f"{value} is accepted"
        numeric = isinstance(default, int | float) and not isinstance(default, bool)
        if value.startswith("["):
            if not (isinstance(default, list) or among(LISTS)):
                return "a list is accepted"
            if not among(WORDY) and any(number in value for number in ("nan", "null", "99999", "1e30")):
                return f"{value} is accepted"
            continue
        if numeric or (default is None and value in NUMBERS):
            if value in ("abc", "true"):
                return f"{value} is accepted"
            if value == "0" and not among(FROM_ZERO):
                return "0 is accepted"
            if value.startswith("-") and not among(NEGATIVE):
                return "a negative number is accepted"
        if isinstance(default, bool) and value not in ("true", "false", "0", "1"):
            return f"{value} is accepted for true or false"
        if isinstance(default, list) and not value.startswith("[") and key != "trust":  # one module needs no list
            return "no list is accepted"
        if isinstance(default, str) and not among(WORDY) and value not in ("auto",) and "${" not in default:
            return f"{value!r} is accepted"
    metrics = outcome.metrics or {}
    scores = {name: number for name, number in metrics.items() if name.startswith(("test/", "validation/"))}
    # of two tasks there may be no AUROC
    bad = [name for name, number in scores.items() if "auroc" not in name and not isfinite(number or 0.0)]
    bad += [name for name, number in scores.items() if "auroc" not in name and number is None]
    return f"{bad[0]} is not finite" if bad else None


def warm_up() -> None:
    """Import everything, so that forked processes are quick."""
    import torch

    import meta_exp.runs.train  # noqa: F401

    torch.set_num_threads(1)


def train_runs(place: Path) -> dict[str, Path]:
    """Train runs for evaluate.py, and return their folders."""
    import meta_exp.comparison.compare
    import meta_exp.production.command  # noqa: F401

    runs = {}
    for name in ("sinusoid", "omniglot"):
        if name == "omniglot" and not os.environ.get("META_EXP_DATA"):
            continue
        words = (*BASES[name], "logger=none", *TINY)
        child = os.fork()
        folder = place / f"run-{name}"
        if not child:
            said = [place / f"{name}.{stream}" for stream in ("out", "err")]
            for file in said:
                file.touch()
            _be("train.py", [*words, f"hydra.run.dir={folder}"], place, said)
        if os.waitpid(child, 0)[1]:
            raise RuntimeError((place / f"{name}.err").read_text())
        runs[name] = folder
    return runs


def all_cases(place: Path, pairs: int, seed: int, quick: bool) -> list[Case]:
    """Return every case, in an order drawn with ``seed``; the ``quick`` ones take no finished run, data or server."""
    warm_up()
    cases = training_cases(pairs, seed)
    if quick:
        cases = [case for case in cases if not {"dataset=omniglot", "logger=wandb"} & {*case.needed}]
    else:
        cases += evaluation_cases(train_runs(place), place, seed)
    random.Random(seed).shuffle(cases)
    return cases


def main() -> None:
    """Run what was asked for, on two processes, and print what fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, help="so many, in place of all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--match", default="", help="only those whose words contain it")
    parser.add_argument("--pairs", type=int, default=40, help="of each base config")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--quick", action="store_true", help="train.py alone, without images and W&B")
    parser.add_argument("--accepted", action="store_true", help="print what is accepted too")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp()) / "place"  # no TemporaryDirectory: a forked process would remove it at its end
    place.mkdir()
    try:
        cases = [
            case for case in all_cases(place, options.pairs, options.seed, options.quick) if options.match in str(case)
        ]
        cases = cases[: options.cases]
        workers = [os.fork() if job else 0 for job in range(options.jobs)] if options.jobs > 1 else [0]
        job = workers.index(0) if 0 in workers else 0
        failed = 0
        for number, case in enumerate(cases[job :: options.jobs]):
            began = time.monotonic()
            outcome = attempt(case, place)
            if reason := fault(case, outcome):
                failed += 1
                last = (outcome.stderr.strip().splitlines() or outcome.stdout.strip().splitlines() or [""])[-1]
                print(f"FAILS ({reason}): {case}\n    {outcome.code}: {last[:400]}", flush=True)
            elif options.accepted and outcome.code == 0:
                print(f"accepted: {' '.join(case.tried)}", flush=True)
            if time.monotonic() - began > 15:
                print(f"slow, {time.monotonic() - began:.0f} s: {case}", flush=True)
            if number % 100 == 99:
                print(f"{number + 1} of {len(cases) // options.jobs}, {failed} failed", file=sys.stderr, flush=True)
        print(f"{len(cases)} cases, {failed} failed")
        sys.exit(1 if failed else 0)
    finally:
        shutil.rmtree(place.parent, ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
