"""Where episodes come from: families of tasks, and the data module that keys each meta-batch."""

from meta_exp.tasks.episode import Episode, Examples
from meta_exp.tasks.harmonic import Harmonic
from meta_exp.tasks.linear import Linear
from meta_exp.tasks.mini_imagenet import MiniImagenet
from meta_exp.tasks.omniglot import Omniglot
from meta_exp.tasks.sinusoid import Sinusoid
from meta_exp.tasks.step import Step

__all__ = ["Episode", "Examples", "Harmonic", "Linear", "MiniImagenet", "Omniglot", "Sinusoid", "Step"]
