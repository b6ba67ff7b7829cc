"""A network that was given in Python: a folder keeps its weights, and no config can build it."""

from collections.abc import Sequence

from torch import nn

from meta_exp.config.checks import require


class Given(nn.Module):
    """Stands in a saved config for the network that whoever loads the folder gives again."""

    def __init__(self, input_shape: Sequence[int], outputs: int) -> None:
        super().__init__()
        got = "a folder that has its weights alone"
        remedy = "give one with the same layers: meta_exp.load(FOLDER, model=NET)"
        require(False, "model", "the network that was fitted", got, remedy)
