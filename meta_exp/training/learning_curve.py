"""The learning curve of a run, ``curves.csv``: a row of validation scores at each validation.

Written whole each time, so that a run continued from a checkpoint goes on where the checkpoint stands.
"""

import csv
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer

from meta_exp.files import replacing

PREFIX = "validation/"


class LearningCurve(Callback):
    """Keep the step and the validation scores in ``file``."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, str]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the rows of an earlier part of this run."""
        self.rows = [row for row in _read(self.file) if float(row["step"]) <= trainer.global_step]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row."""
        if trainer.global_rank:
            return
        scores = {k: repr(float(v)) for k, v in trainer.callback_metrics.items() if k.startswith(PREFIX)}
        self.rows.append({"step": str(trainer.global_step)} | scores)
        with replacing(self.file) as stream:
            writer = csv.DictWriter(stream, list(self.rows[-1]), extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def read_curve(file: Path) -> dict[str, list[float]]:
    """Return the columns of ``curves.csv``, or none where a run has no such file.

    Raises:
        ValueError: a cell is not a number.
    """
    rows = _read(file)
    return {name: [float(row[name] or "nan") for row in rows] for name in (rows[0] if rows else {})}


def _read(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))
