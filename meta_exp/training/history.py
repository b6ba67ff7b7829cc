"""Everything a run has logged, ``history.jsonl``: a line of scores at a step, from which any dashboard can be written.

The line of a crash is cut, with what stands behind it, and where a run goes on from a checkpoint, so is what was logged
after it.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meta_exp.files import LARGEST, naming, write_whole

STEP, TASKS = "step", "tasks_seen"
Row = dict[str, Any]


class History:
    """The rows of the history in ``folder``, up to ``step``."""

    def __init__(self, folder: Path, step: int) -> None:
        self.file = folder / "history.jsonl"
        self.rows = [row for row in read_history(self.file) if TASKS in row and row[STEP] <= step]
        write_whole(self.file, "".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, scores: Mapping[str, float], step: int) -> None:
        """Add what was logged at ``step``."""
        with naming(self.file), self.file.open("a") as stream:
            stream.write(json.dumps({STEP: step} | dict(scores)) + "\n")


def read_history(file: Path) -> list[Row]:
    """Return the rows of ``history.jsonl``, none where there is no such file."""
    rows: list[Row] = []
    with file.open("rb") if file.is_file() else io.BytesIO() as stream:
        while line := stream.readline(LARGEST):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # cut short, or damaged
                break
            if not isinstance(row, dict) or not isinstance(row.get(STEP), int):
                break
            rows.append(row)
    return rows
