"""Files that are either whole or absent, whenever the process or the machine dies."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` so that the file is either whole or absent; those that are not finite become null."""
    clean = {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in values.items()}
    write_whole(file, json.dumps(clean, indent=2, allow_nan=False) + "\n")


def write_whole(file: Path, text: str) -> None:
    """Write ``text`` so that the file is either whole or as it was."""
    with replacing(file) as stream:
        stream.write(text)


@contextmanager
def replacing(file: Path, mode: str = "w") -> Iterator[Any]:
    """Open a file beside ``file`` for writing, as text or bytes; at the end flush it to the disk and rename it."""
    part = file.with_name(f"{file.name}.part")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    with part.open(mode, **text) as stream:  # type: ignore[call-overload]
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)
