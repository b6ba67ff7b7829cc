"""What a run needs of Lightning's insides, in one place: of versions 2.6, whose state and names it knows.

Lightning offers no public way to these. Each is needed for a run that goes on to retrace the steps of an undisturbed
one, bit by bit, so that another version is told of in one line.
"""

import logging
from typing import Any

import pytorch_lightning
from pytorch_lightning import Trainer

log = logging.getLogger(__name__)
KNOWN = "2.6"


def known(version: str = pytorch_lightning.__version__) -> bool:
    """Whether the insides of this version are known."""
    return version.split(".")[:2] == KNOWN.split(".")


def warn_of_other_versions(version: str = pytorch_lightning.__version__) -> None:
    """Warn in one line where Lightning is of a version whose insides are not known."""
    if not known(version):
        text = "pytorch-lightning: expected version %s, got %s; a run that is interrupted may go on to other weights"
        log.warning(text, KNOWN, version)


def forget_signals(trainer: Trainer) -> None:
    """Forget a SIGTERM that came while Lightning listened: it is handled, and would end the run after its first step.

    Lightning listens from its setup on, and keeps what it heard for the end of the next step.
    """
    trainer._signal_connector.received_sigterm = False


def set_steps_logged(trainer: Trainer, steps: int) -> None:
    """Say how many steps are done, by which loggers count.

    Lightning counts a step twice if it finds, on continuing, that the validation of that step is done.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = steps


def leave_out_ready_batch(checkpoint: dict[str, Any]) -> None:
    """Leave the batch that is ready but not begun out of a checkpoint made between two steps.

    Lightning counts a batch as ready before it calls its callbacks, and would skip it on continuing.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts["ready"] = counts["completed"]
