"""Where episodes come from: families of tasks, and the data module that keys each meta-batch."""

from meta_exp.tasks.episode import Episode, Examples
from meta_exp.tasks.omniglot import Omniglot
from meta_exp.tasks.sinusoid import Sinusoid

__all__ = ["Episode", "Examples", "Omniglot", "Sinusoid"]
