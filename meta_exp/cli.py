"""How a command ends: an expected error is one clear line and exit code 1, anything else a traceback."""

import os
import sys
from collections.abc import Callable


def run(command: Callable[[], None]) -> None:
    """Run a Hydra command; set HYDRA_FULL_ERROR=1 to see the traceback of an expected error too."""
    traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, in place of printing parts of a traceback
    try:
        command()
    except Exception as error:
        if traceback_wanted or not _expected(error):
            raise
        sys.exit(f"error: {_message(error)}")


def _expected(error: BaseException) -> bool:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return isinstance(error, HydraException | OmegaConfBaseException | ValueError | OSError | FloatingPointError)


def _message(error: BaseException) -> str:
    return str(error)
