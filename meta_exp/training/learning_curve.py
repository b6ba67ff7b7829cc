"""The learning curve of a run, ``curves.csv``: a row of validation scores at each validation.

Written whole each time, so that a run continued from a checkpoint goes on where the checkpoint stands. What is lost of
it stands in the history beside it, and is written anew from there.
"""

import csv
import io
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from meta_exp.config.checks import one_line
from meta_exp.files import read_bounded, replacing
from meta_exp.training.history import STEP, read_history

PREFIX = "validation/"
HISTORY = "history.jsonl"
Row = dict[str, str]


class LearningCurve(Callback):
    """Keep the step and the validation scores in ``file``."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[Row] = []
        self.step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the rows of an earlier part of this run."""
        self.rows = [row for row in _read(self.file) if float(row[STEP]) <= trainer.global_step]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the step that this batch is of: of several that are accumulated, a validation may follow any."""
        self.step = trainer.global_step + 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row."""
        if trainer.global_rank:
            return
        scores = {k: repr(float(v)) for k, v in trainer.callback_metrics.items() if k.startswith(PREFIX)}
        self.rows.append({STEP: str(self.step)} | scores)
        _write(self.file, self.rows)


def mend_curve(file: Path, step: int) -> None:
    """Write ``file`` up to ``step`` anew from the history beside it, unless that has fewer rows."""
    own: list[Row] = []
    with suppress(ValueError, KeyError, TypeError, csv.Error):  # damaged: the history has it all
        own = [row for row in _read(file) if float(row[STEP]) <= step]
    told = [row for row in _from_history(file) if float(row[STEP]) <= step]
    if rows := max(told, own, key=len):
        _write(file, rows)


def read_curve(file: Path) -> dict[str, list[float]]:
    """Return the columns of ``curves.csv``, those of the history where it is lost, or none where that is too.

    Raises:
        ValueError: it is damaged.
    """
    try:
        rows = _read(file) or _from_history(file)
        return {name: [float(row[name] or "nan") for row in rows] for name in ([STEP, *rows[0]] if rows else ())}
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        got = one_line(error).removeprefix(f"{file}: expected numbers by step, got ")
        remedy = "remove it: its rows stand in history.jsonl too"
        raise ValueError(f"{file}: expected numbers by step, got {got}; {remedy}") from error


def _write(file: Path, rows: list[Row]) -> None:
    with replacing(file) as stream:
        writer = csv.DictWriter(stream, list(rows[-1]), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _read(file: Path) -> list[Row]:
    return list(csv.DictReader(io.StringIO(read_bounded(file, "numbers by step").decode() if file.exists() else "")))


def _from_history(file: Path) -> list[Row]:
    """Return the rows that the history beside ``file`` has, as they would stand in it."""
    found = []
    for row in read_history(file.with_name(HISTORY)):
        scores = {name: repr(float(v)) for name, v in row.items() if name.startswith(PREFIX) and v is not None}
        if scores:
            found.append({STEP: str(row[STEP])} | scores)
    return found
