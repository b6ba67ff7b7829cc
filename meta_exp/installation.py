"""A checkout or an installed package: where ``conf/`` is found, and what a person types.

In a checkout ``conf/`` stands at the top, and commands are scripts under ``uv run``. A wheel carries ``conf/`` within
the package, and its commands are words of ``meta-exp``.
"""

from pathlib import Path

PACKAGE = Path(__file__).parent
INSTALLED = (PACKAGE / "conf").is_dir()
CONF = (PACKAGE if INSTALLED else PACKAGE.parent) / "conf"
SCRIPTS = {"train": "uv run train.py", "evaluate": "uv run evaluate.py", "tasks": "uv run python -m meta_exp.tasks"}


def typed(command: str, installed: bool = INSTALLED) -> str:
    """Return how the ``command`` train, evaluate or tasks is typed."""
    return f"meta-exp {command}" if installed else SCRIPTS[command]


def with_extra(extra: str, installed: bool = INSTALLED) -> str:
    """Return how the packages of an ``extra`` are had."""
    return f"pip install 'meta-exp[{extra}]'" if installed else f"uv run --extra {extra} train.py ..."
