"""How a command ends: an expected error is one clear line and exit code 1, anything else a traceback.

Ctrl-C and SIGTERM end it with 130 and 143, as a shell says it, in one line too.
"""

import atexit
import errno
import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from meta_exp.config.checks import is_out_of_memory, one_line
from meta_exp.config.keys import flatten, meant
from meta_exp.installation import with_extra
from meta_exp.terminal import PlainFormatter, open_streams, plain, plain_lines

ENDED_BY = {128 + number: number for number in (signal.SIGINT, signal.SIGTERM)}
END_S = 3.0  # for what is to be put away at the end of a process that was asked to end
FULL = (errno.ENOSPC, errno.EDQUOT)
LESS_MEMORY = "try a smaller chunk_size, down to 1, or checkpoint_steps=true in training, or a smaller model"
EXTRAS = {"hydra_submitit_launcher": "slurm", "hydra_ray_launcher": "ray"}  # that bring Hydra's plugins


def run(command: Callable[[], None]) -> None:
    """Run a Hydra command; set HYDRA_FULL_ERROR=1 to see the traceback of an expected error too."""
    open_streams()
    sys.argv[1:] = map(_at_home, sys.argv[1:])
    if os.environ.get("META_EXP_DATA") == "":  # as good as not set
        del os.environ["META_EXP_DATA"]
    # a further process of a data-parallel run has inherited what the first one sets below
    traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1" and "LOCAL_RANK" not in os.environ
    # conf/hydra/launcher says more than its plugins' configs of the same names
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
    # under "uv run" Ray would have its workers write their runs into a copy of the working folder
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, in place of printing parts of a traceback
    _speak_plainly()
    signal.signal(signal.SIGTERM, _terminate)
    ended: list[int] = []  # the code of a process that has nothing left to do
    atexit.register(lambda: end_at_once(*ended) if ended else None)  # registered first, it is called last
    try:
        command()
        ended.append(0)
    except (KeyboardInterrupt, SystemExit) as end:
        code = 128 + signal.SIGINT if isinstance(end, KeyboardInterrupt) else end.code
        if code not in ENDED_BY:
            raise
        ended.append(code)
        print(f"ended by {ENDED_BY[code].name}", file=sys.stderr)
        threading.Thread(target=_end_soon, args=ended, daemon=True).start()
        sys.exit(code)
    except Exception as error:
        if traceback_wanted or not _expected(error):
            raise
        sys.exit(f"error: {plain(reason(error))}")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import what a command needs with the garbage collector at rest: a quarter of the time goes to it otherwise.

    The half million objects of PyTorch and its company stay for good; no later collection looks through them either.
    """
    known = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:  # in a sweep's further jobs it would keep what the last one left
            gc.freeze()
            atexit.register(gc.unfreeze)  # Triton complains of what is left at the interpreter's end
        gc.enable()


def _speak_plainly() -> None:
    """Let warnings, errors that nobody expected and what is logged without a log reach the terminal as plain words."""

    def format_warning(*arguments: Any, **options: Any) -> str:
        return plain_lines(formatted(*arguments, **options))

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(plain_lines("".join(traceback.format_exception(kind, error, trace))))

    formatted = warnings.formatwarning
    warnings.formatwarning = format_warning
    sys.excepthook = hook
    if logging.lastResort:
        logging.lastResort.setFormatter(PlainFormatter())


def _at_home(word: str) -> str:
    """Return ``key=~/a`` with the home folder in place of ``~``, which a shell leaves as it is behind a ``=``.

    A quoted ``~/a`` too; ``~key`` is Hydra's.
    """
    if word.startswith("~/"):
        return os.path.expanduser(word)
    key, equals, value = word.partition("=")
    return f"{key}={os.path.expanduser(value)}" if equals and value.startswith("~") else word


def _terminate(number: int, frame: FrameType | None) -> None:
    """End in order: what is open is closed, and the lock on a run's folder is let go."""
    sys.exit(128 + number)


def _end_soon(code: int) -> None:
    """End a process that was asked to, although its exit waits for something: workers of a compiler, a server."""
    time.sleep(END_S)
    end_at_once(code)


def end_at_once(code: int = 0) -> None:
    """End a process that has done all that it was to do.

    To take the interpreter apart, with all that PyTorch has loaded, takes another 1.5 s, and many after a compilation.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _expected(error: Exception) -> bool:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    known = HydraException | OmegaConfBaseException | ValueError | OSError | FloatingPointError
    return isinstance(error, known) or is_out_of_memory(error) or _missing_extra(error) is not None


def _missing_extra(error: Exception) -> str | None:
    """Return the extra that brings a plugin which is not installed, if that is the error."""
    if not str(error).startswith("Unknown plugin class"):
        return None
    return next((extra for plugin, extra in EXTRAS.items() if plugin in str(error)), None)


def reason(error: Exception) -> str:
    """Return what an error says, in one line, without what only Hydra's authors need."""
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, OSError) and error.strerror:
        remedy = "; make room there, and give the same command again"
        words = error.strerror + (remedy if error.errno in FULL and "make room" not in error.strerror else "")
        return f"{error.filename}: {words}" if error.filename else words
    if is_out_of_memory(error):
        return f"out of memory ({one_line(error)[:200]}); {LESS_MEMORY}"
    if extra := _missing_extra(error):
        return f"this launcher is not installed; it comes with {with_extra(extra)}"
    text = str(error).split("Config search path")[0]
    cause = error.__cause__ if isinstance(error, HydraException) else None
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        whole = flatten(OmegaConf.to_container(cause.parent_node._get_root(), resolve=False))
        known = [place for place in whole if not place.startswith("hydra.") and not place.endswith("_target_")]
        key = str(cause.full_key)
        text = text.split("To append")[0] + "; ".join(filter(None, [f"No such key {key}", meant(key, known)]))
    return one_line(text or error)
