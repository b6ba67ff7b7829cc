"""Where episodes come from: families of tasks, and the data module that keys each meta-batch."""

from meta_exp.tasks.episode import Episode, Examples
from meta_exp.tasks.functions.harmonic import Harmonic
from meta_exp.tasks.functions.linear import Linear
from meta_exp.tasks.functions.sinusoid import Sinusoid
from meta_exp.tasks.functions.step import Step
from meta_exp.tasks.given import Given
from meta_exp.tasks.images.image_folder import ImageFolder
from meta_exp.tasks.images.mini_imagenet import MiniImagenet
from meta_exp.tasks.images.omniglot import Omniglot
from meta_exp.tasks.tables.csv_tasks import CsvTasks

__all__ = [
    "CsvTasks",
    "Episode",
    "Examples",
    "Given",
    "Harmonic",
    "ImageFolder",
    "Linear",
    "MiniImagenet",
    "Omniglot",
    "Sinusoid",
    "Step",
]
