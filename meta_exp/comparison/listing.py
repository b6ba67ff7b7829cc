"""The runs below a folder as they stand: state, overrides, config and scores from their files; nothing is computed.

    finished       metrics.json stands there
    running        another process holds the run's lock
    failed         train.log ends with a traceback
    interrupted    it was begun, and is none of these
    never started  its sweep's command names it, and it has no folder

The sweep is that of the last command in its folder. Newest come first, or the best by a score.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice, product
from math import inf, isfinite, prod
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from meta_exp.config.checks import require
from meta_exp.config.keys import NOT_IN_NAME, PLACED, flatten, within
from meta_exp.files import is_held, read_json
from meta_exp.runs.names import override_folder, title
from meta_exp.runs.saved import read_config, read_overrides, read_plain
from meta_exp.terminal import cell, plain, plus_minus, print_fitted

STATES = ("finished", "running", "interrupted", "failed", "never started")
MARKS = ("config.yaml", "train.log", "metrics.json")  # any of them makes a folder a run's
SWEEP = "multirun.yaml"  # Hydra's record of a sweep's command
LARGEST_SWEEP = 10**4  # jobs that are named
TAIL = 2**16  # bytes of a log that tell how it ended
FAILURE, BEGINNING = b"[meta_exp.failure][ERROR]", b"run folder: "
HIGHER_IS_BETTER = ("accuracy", "auroc")
KINDS = ("map", "sample", "linearized")  # of predictives; the last that was scored is served
Row = dict[str, Any]


def results(folder: str | Path = "outputs") -> Any:
    """Return the runs below ``folder``, newest first: a pandas DataFrame where pandas is there, else a list of dicts.

    A row has the run's folder, its state, when it last wrote, its config's keys, dotted, and what metrics.json holds,
    as ``test/linearized/nll``.

    Raises:
        ValueError: there is no such folder.
    """
    rows = list_runs(Path(folder))
    for row in rows:
        row["overrides"] = " ".join(row["overrides"])
    try:
        import pandas
    except ImportError:
        return rows
    return pandas.DataFrame(rows)


def list_runs(folder: Path) -> list[Row]:
    """Return a row for each run below ``folder``, and for each that its sweep is missing, newest first."""
    require(folder.is_dir(), str(folder), "a folder of runs", "a file" if folder.exists() else "none")
    rows: list[Row] = []
    for place, below, files in os.walk(folder):
        if not {*below, *files}.isdisjoint(MARKS):
            rows.append(_row(Path(place)))
            below.clear()
        elif SWEEP in files:
            rows += [row for row in _missing(Path(place)) if not Path(row["run"]).is_dir()]
        below[:] = sorted(name for name in below if not name.startswith("."))
    return sorted(rows, key=lambda row: -(row["time"] or 0.0))


def show(arguments: Sequence[str]) -> None:
    """Print the runs below a folder, ``outputs`` unless one is given; ``sort=SCORE`` and ``key=value`` choose.

    Raises:
        ValueError: no run is left, or an argument is none.
    """
    folders = [Path(word).expanduser() for word in arguments if "=" not in word]
    require(len(folders) <= 1, "evaluate.py list", "one folder", len(folders))
    chosen = dict(word.split("=", 1) for word in arguments if "=" in word)
    sort = chosen.pop("sort", None)
    folder = folders[0] if folders else Path("outputs")
    rows = list_runs(folder)
    require(bool(rows), str(folder), "a folder of runs", "a folder without any", "run train.py")
    for key, value in chosen.items():
        require(any(key in _keys(row) for row in rows), key, "a key of a run's config", "one that no run has")
        rows = [row for row in rows if str(_keys(row).get(key, "")).lower() == value.lower()]
        require(bool(rows), f"{key}={value}", "a run that has it", "none")
    if sort is not None:
        known = sorted({key for row in rows for key, value in row.items() if _number(value) is not None})
        near = ", ".join(key for key in known if key.startswith("test/") and key.endswith("/nll"))
        require(sort in known, f"sort={sort}", f"a score of metrics.json such as {near}", "one that no run has")
        rows = sorted(rows, key=lambda row: _rank(row, sort))
    _print(rows, folder, sort)


def _print(rows: Sequence[Row], folder: Path, sort: str | None) -> None:
    from rich.table import Table

    said = [_overrides(row) for row in rows]
    keys = list(dict.fromkeys(key for words in said for key in words))
    keys = [key for key in keys if len({words.get(key) for words in said}) > 1 and not within(key, NOT_IN_NAME)]
    metrics = [name for name in ("mse", "accuracy") if any(f"test/{_served(row)}/{name}" in row for row in rows)]
    own = [sort] if sort and sort.rpartition("/")[2] not in (*metrics, "nll") else []
    table = Table("", "what differs", "state", *(f"test {name}" for name in metrics), "test NLL", *map(cell, own))
    for number, row in enumerate(rows, 1):
        kind = _served(row)
        words = title(
            row["overrides"], list(dict.fromkeys(["algorithm", *keys])), str(row.get("choices.algorithm", ""))
        )
        scores = [_score(row, f"test/{kind}/{name}") for name in (*metrics, "nll")]
        table.add_row(str(number), cell(words), row["state"], *scores, *(_score(row, key) for key in own))
    print_fitted(table, 2)
    for number, row in enumerate(rows, 1):
        print(plain(f"{number}  {row['run']}"))
    count = {state: sum(row["state"] == state for row in rows) for state in STATES}
    print(plain(f"{folder}: {', '.join(f'{n} {state}' for state, n in count.items() if n)}"))
    sys.stdout.flush()


def _row(run: Path) -> Row:
    """Return what the files of a run say; what is damaged is left out."""
    metrics: Row = {}
    keys: Mapping[str, Any] = {}
    overrides: list[str] = []
    with suppress(ValueError, OSError):
        metrics = read_json(run / "metrics.json", "the metrics of a run")
    with suppress(ValueError, OSError):
        keys = flatten(OmegaConf.to_container(read_config(run / "config.yaml")))
    with suppress(ValueError, OSError, HydraException):
        found = read_overrides(run)
        OverridesParser.create().parse_overrides(found)
        overrides = found
    wrote = max((file.lstat().st_mtime for name in MARKS if (file := run / name).is_file()), default=None)
    kept = {key: value for key, value in keys.items() if not within(key, (*PLACED, "format"))}
    own = {"run": str(run), "state": _state(run, bool(metrics)), "time": wrote, "overrides": overrides}
    return own | kept | {key: value for key, value in metrics.items() if key not in own}


def _state(run: Path, finished: bool) -> str:
    if finished:
        return "finished"
    if is_held(run / ".lock"):
        return "running"
    return "failed" if _failed(run / "train.log") else "interrupted"


def _failed(log: Path) -> bool:
    """Whether the last part of a log ended with an error."""
    if not log.is_file():
        return False
    with log.open("rb") as stream:
        stream.seek(max(log.stat().st_size - TAIL, 0))
        tail = stream.read(TAIL)
    return tail.rfind(FAILURE) > tail.rfind(BEGINNING)


def _missing(sweep: Path) -> Iterator[Row]:
    """Yield a row for each job that the sweep's last command names; none where that cannot be known, as in a search."""
    with suppress(ValueError, OSError, HydraException, yaml.YAMLError):
        config: Any = read_plain(sweep / SWEEP, "a sweep's command")
        hydra = config.get("hydra") or {}
        sweeper, given = hydra.get("sweeper") or {}, (hydra.get("overrides") or {}).get("task") or []
        if not str(sweeper.get("_target_")).endswith("BasicSweeper"):
            return
        words = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()] + list(map(str, given))
        values: dict[str, list[str]] = {}
        for override in OverridesParser.create().parse_overrides(words):
            key = override.get_key_element()
            several = override.is_sweep_override() and override.is_discrete_sweep()
            found = override.sweep_string_iterator() if several else [override.get_value_element_as_str()]
            values[key] = [f"{key}={value}" for value in islice(found, LARGEST_SWEEP + 1)]
        if prod(map(len, values.values())) > LARGEST_SWEEP:
            return
        for job in product(*values.values()):
            run = str(sweep / override_folder(job))
            yield {"run": run, "state": "never started", "time": None, "overrides": list(job)}


def _keys(row: Row) -> Row:
    """Return what a row may be chosen by: its config's keys, choices by the name of their group, and its state."""
    choices = {key.partition(".")[2]: value for key, value in row.items() if key.startswith("choices.")}
    return row | _overrides(row) | choices


def _overrides(row: Row) -> dict[str, str]:
    pairs = (word.lstrip("+").partition("=") for word in row["overrides"])
    return {key: value for key, equals, value in pairs if equals}


def _served(row: Row) -> str:
    return next((kind for kind in reversed(KINDS) if f"test/{kind}/nll" in row), KINDS[0])


def _score(row: Row, key: str) -> str:
    value, half = _number(row.get(key)), _number(row.get(f"{key}_ci95"))
    return "" if value is None else plus_minus(value, inf if half is None else half)


def _number(value: Any) -> float | None:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and abs(value) < 1e300 and isfinite(value) else None


def _rank(row: Row, sort: str) -> tuple[bool, float]:
    """Return by what rows are put in order: the best first, those without a score last."""
    value = _number(row.get(sort))
    higher = sort.rpartition("/")[2].startswith(HIGHER_IS_BETTER)
    return value is None, 0.0 if value is None else -value if higher else value
