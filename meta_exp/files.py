"""Files that are either whole or absent, whenever the process or the machine dies."""

import json
import os
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` so that the file is either whole or absent; those that are not finite become null."""
    clean = {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in values.items()}
    write_whole(file, json.dumps(clean, indent=2, allow_nan=False) + "\n")


def write_whole(file: Path, text: str) -> None:
    """Write ``text`` beside ``file``, flush it to the disk and rename it."""
    part = file.with_name(f"{file.name}.part")
    with part.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)
