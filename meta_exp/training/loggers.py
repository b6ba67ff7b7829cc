"""Loggers that cannot harm a training, and W&B with one run for one folder.

Whatever a logger raises (a network that died, a wrong key, a full disk) is said once, and the training goes on without
that logger. A continued run is one run: what it logs locally is written anew from its history, up to the checkpoint
from which it goes on; a W&B run that is online is taken up by its id. What is replaced then are the files that the same
logger made for the same run, and nothing else: in a place outside the run's folder each run has a folder of its own.
"""

import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from meta_exp.config.checks import one_line, require, shown
from meta_exp.training.history import STEP, TASKS, History
from meta_exp.training.panels import COMPARE, panels

log = logging.getLogger(__name__)
BY_TASKS = "versus_tasks/"  # W&B sorts its sections by name: what stands in others too comes last
PATIENCE_S = 60  # with W&B's start and end, where the network is gone
HIGHER_IS_BETTER = "accuracy"
MADE = {CSVLogger: ("metrics.csv", "hparams.yaml"), TensorBoardLogger: ("events.out.tfevents.*", "hparams.yaml")}
HASH = 10  # hexadecimal digits
LONGEST, TAG, FORBIDDEN = 128, 64, "/\\#?%:"  # as W&B takes them
LONGEST_WORDS, SEEN = 80, 18  # characters of a title in a folder's name, and those of them that a narrow list shows
OWNER = "run_dir.txt"  # in an offline W&B run, the folder that it is of


class Guarded(Logger):
    """A logger, called ``name``, whose errors are said once and end it, not the training."""

    def __init__(self, logger: Logger, name: str) -> None:
        super().__init__()
        self.logger: Any = logger
        self._name = name

    @property
    def name(self) -> str:
        """What the logger is called in conf/logger."""
        return self._name

    @property
    def version(self) -> str:
        """Nothing: a run's folder has one version."""
        return ""

    def begin(self, config: dict[str, Any], history: History) -> None:
        """Start with the resolved config and what the run has logged so far; its older local files are replaced."""
        for kind, patterns in MADE.items():
            if isinstance(self.logger, kind):
                _remove_links(Path(config["run_dir"]), Path(self.logger.log_dir))
                _use_own_folder(self.logger, config["run_dir"], config["run_name"])
                _remove(Path(self.logger.log_dir), patterns)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
            self._try("log_hyperparams", config)
        if not getattr(self.logger, "keeps", False):
            for row in history.rows:
                self._try("log_metrics", {key: value for key, value in row.items() if key != STEP}, row[STEP])

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log ``metrics`` at ``step``."""
        self._try("log_metrics", metrics, step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the config is logged once, by ``begin``."""

    def log_pictures(self, files: Sequence[Path], step: int) -> None:
        """Log PNG files as images, where the logger takes some."""
        if hasattr(self.logger, "log_pictures"):
            self._try("log_pictures", files, step)

    def save(self) -> None:
        """Flush what was logged."""
        self._try("save")

    def finalize(self, status: str) -> None:
        """End a part of the run."""
        self._try("finalize", status)

    def close(self, exit_code: int) -> None:
        """End the run; in a sweep the next one must not go on in it."""
        if hasattr(self.logger, "close"):
            self._try("close", exit_code)

    @rank_zero_only
    def _try(self, method: str, *arguments: Any) -> None:
        if self.logger is None:
            return
        try:
            getattr(self.logger, method)(*arguments)
        except Exception as error:  # whatever a network, a server or a disk can provoke
            self.logger = None
            reason = one_line(error)[:300]
            log.warning("logger %s stopped (%s); the training goes on without it", self._name, reason)


def _use_own_folder(logger: Any, run_dir: str, run_name: str) -> None:
    """Have a logger that writes outside the run's folder, where others may too, write to a folder of the run alone."""
    run = Path(run_dir).resolve()
    if not Path(logger.log_dir).resolve().is_relative_to(run):
        given = logger.version if isinstance(logger._version, str) else ""
        logger._version = str(Path(given) / f"{run_name}-{sha256(str(run).encode()).hexdigest()[:HASH]}")


def _remove_links(run: Path, folder: Path) -> None:
    """Remove the links by which a ``folder`` below that of a ``run`` would lie elsewhere."""
    run, folder = run.absolute(), folder.absolute()
    for place in [folder, *folder.parents]:
        if place.is_relative_to(run) and place != run and place.is_symlink():
            place.unlink()


def _remove(folder: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for file in folder.glob(pattern):
            if file.is_symlink() or file.is_file():  # of a link nothing but itself
                file.unlink()


class Recorder(Logger):
    """What Lightning logs, told apart by step and tasks seen, for the history and for every other logger."""

    def __init__(self, loggers: Sequence[Guarded], tasks_per_step: int) -> None:
        super().__init__()
        self.loggers, self.tasks_per_step = loggers, tasks_per_step
        self.history: History | None = None

    @property
    def name(self) -> str:
        """What the logger is called."""
        return "history"

    @property
    def version(self) -> str:
        """Nothing: a run's folder has one version."""
        return ""

    @rank_zero_only
    def begin(self, config: dict[str, Any], folder: Path, step: int) -> None:
        """Start all loggers of a run that goes on after ``step``."""
        self.history = History(folder, step)
        for logger in self.loggers:
            logger.begin(config, self.history)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log ``metrics`` of training; Lightning counts its steps from 0, and its one epoch has no end."""
        done = (step or 0) + 1
        scores = {name: value for name, value in metrics.items() if name != "epoch"}
        self.log({**scores, TASKS: done * self.tasks_per_step}, done)

    def log(self, scores: Mapping[str, float], step: int) -> None:
        """Log ``scores`` after ``step`` steps."""
        if self.history is not None:
            self.history.add(scores, step)
            for logger in self.loggers:
                logger.log_metrics(dict(scores), step)
                logger.save()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the config is logged once, by ``begin``."""

    def log_pictures(self, files: Sequence[Path], step: int) -> None:
        """Log the PNG files among ``files`` as images."""
        for logger in self.loggers:
            logger.log_pictures([file for file in files if file.suffix == ".png"], step)

    def finalize(self, status: str) -> None:
        """End a part of the run."""
        for logger in self.loggers:
            logger.finalize(status)

    def close(self, exit_code: int) -> None:
        """End the run."""
        for logger in self.loggers:
            logger.close(exit_code)


class TensorBoard(TensorBoardLogger):
    """Event files in the run's folder, pictures included."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="tensorboard", version="", default_hp_metric=False)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log ``metrics`` and the panels that runs are compared by."""
        super().log_metrics({**panels(metrics), **metrics}, step)

    def log_pictures(self, files: Sequence[Path], step: int) -> None:
        """Log PNG files as images."""
        from matplotlib.image import imread

        for file in files:
            self.experiment.add_image(f"pictures/{file.stem}", imread(file), step, dataformats="HWC")

    def close(self, exit_code: int) -> None:
        """Write what has come since the training's end; the process may not live to write it."""
        self.finalize("success" if exit_code == 0 else "failed")


@contextmanager
def _nobody_to_ask() -> Iterator[None]:
    """Have W&B say that a key is missing, in place of asking a terminal for one, where a sweep would wait for ever."""
    asked = sys.stdin
    with open(os.devnull) as nobody:
        sys.stdin = nobody
        try:
            yield
        finally:
            sys.stdin = asked


class WandB(Logger):
    """A W&B run.

    Args:
        project: where it stands on the dashboard.
        save_dir: all runs lie in its folder ``wandb``.
        id: of the run: its folder.
        group: the experiment or sweep.
        job_type: the algorithm.
        tags: words to filter by; null is left out.
        mode: offline takes no account and no network.
        entity: the user or team; null for the account's own.
        name: what people see of it; null for the id.
    """

    def __init__(
        self,
        project: str,
        save_dir: str,
        id: str,
        group: str,
        job_type: str,
        tags: list[str | None],
        mode: Literal["online", "offline", "disabled"] = "offline",
        entity: str | None = None,
        name: str | None = None,
    ) -> None:
        words = {"project": project, "id": id, "group": group, "job_type": job_type, "name": name or id}
        for key, value in words.items():
            taken = 0 < len(value) <= LONGEST and value.isprintable()
            taken &= key not in ("project", "id") or not set(value) & set(FORBIDDEN)
            expected = f"a word of at most {LONGEST} characters, in a project or id none of {FORBIDDEN}"
            require(taken, f"logger.wandb.{key}", expected, shown(value))
        for tag in filter(None, tags):
            require(len(tag) <= TAG, "logger.wandb.tags", f"words of at most {TAG} characters", shown(tag))
        super().__init__()
        self.folder, self.mode, self.id = Path(save_dir), mode, id
        self.arguments: dict[str, Any] = {"project": project, "entity": entity, "dir": save_dir, "mode": mode}
        self.arguments |= {"id": id, "name": name or id, "group": group, "job_type": job_type}
        self.arguments["tags"] = [tag for tag in tags if tag]
        self.keeps = mode == "online"  # what an earlier part of the run has logged
        self.run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return str(self.arguments["project"])

    @property
    def version(self) -> str:
        """The run's id."""
        return self.id

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Begin the run with its resolved config; an earlier offline part of it is replaced."""
        import wandb

        owner = str(Path(params["run_dir"]).resolve())
        if self.mode == "offline":
            for earlier in (self.folder / "wandb").glob(f"offline-run-*-{escape(self.id)}"):
                if (earlier / OWNER).exists() and (earlier / OWNER).read_text() == owner:
                    shutil.rmtree(earlier)
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(init_timeout=PATIENCE_S, finish_timeout=PATIENCE_S, silent=True)
        with _nobody_to_ask():
            self.run = wandb.init(**self.arguments, config=params, resume="allow", settings=settings)
        if self.mode == "offline":
            Path(self.run.dir).with_name(OWNER).write_text(owner)
        self.run.define_metric(STEP, hidden=True)
        self.run.define_metric(TASKS, hidden=True)
        for part in (f"{COMPARE}*", "train/*", "test/*", "pictures/*"):
            self.run.define_metric(part, step_metric=STEP)
        self.run.define_metric("validation/*", step_metric=STEP, summary="min")
        self.run.define_metric(f"validation/map/{HIGHER_IS_BETTER}*", step_metric=STEP, summary="max")
        self.run.define_metric(f"{BY_TASKS}*", step_metric=TASKS)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log ``metrics`` against the step, and where they tell the tasks seen, against those too."""
        by_tasks = {BY_TASKS + name: value for name, value in metrics.items() if name != TASKS and TASKS in metrics}
        self.run.log({**panels(metrics), **metrics, **by_tasks, STEP: step})

    def log_pictures(self, files: Sequence[Path], step: int) -> None:
        """Log PNG files as images."""
        import wandb

        self.run.log({STEP: step} | {f"pictures/{file.stem}": wandb.Image(str(file)) for file in files})

    def close(self, exit_code: int) -> None:
        """End the run."""
        if self.run is None:
            return
        folder = Path(self.run.dir).parent
        self.run.finish(exit_code=exit_code)
        if self.mode == "offline" and self.arguments["name"] != self.id:
            with suppress(OSError):  # it is found by its id all the same
                _name(folder, self.arguments["name"])


def _name(folder: Path, title: str) -> None:
    """Put a run's title in front of the time and the id in the name of its offline ``folder``.

    ``wandb leet`` lists folders by the beginnings of their names, in which all runs of a day are alike. It finds a run
    by what stands behind ``run-TIME-``, and ``wandb sync`` whatever begins with ``offline-``. In 80 columns the list
    shows but the first words of a title: what varies fastest comes first, without its keys where there is much of it.
    """
    parts = re.split(r", (?![^\[]*\])", title)[::-1]
    if len(" ".join(parts[:-1])) > SEEN:
        parts = [re.sub(r"^[\w.]+ (\S+|\[.*\])$", r"\1", part) for part in parts]
    words = re.sub(r"[^\w.+-]+", "-", " ".join(parts)).strip("-")[:LONGEST_WORDS]
    named = folder.with_name(f"offline-run-{words}-{folder.name.removeprefix('offline-')}")
    folder.rename(named)
    for link in folder.parent.iterdir():  # latest-run, debug.log
        if link.is_symlink() and (target := link.readlink()).parts[:1] == (folder.name,):
            link.unlink()
            link.symlink_to(Path(named.name, *target.parts[1:]))
