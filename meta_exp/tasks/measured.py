"""What a data set of one's own decides by itself: settings that a run measures once and keeps in its config.

So a run that is continued, evaluated or put to work treats its inputs as they were trained on, wherever its data is by
then, and another data set under the old name is another config.
"""

from typing import Any, Protocol, runtime_checkable

from meta_exp.tasks.stream import TaskFamily


@runtime_checkable
class Measured(TaskFamily, Protocol):
    """A family some of whose settings are measured where they are not given."""

    def measure(self) -> dict[str, Any]:
        """Return these settings by name, as given or else as measured on the training split, in plain values."""
