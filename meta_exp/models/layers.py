"""The layers of a network, and a choice of some by name, by place or by kind.

A layer is a module with parameters of its own, so that a norm is one beside its convolution: ``blocks.0.0`` and
``blocks.0.1.affine`` are the first two of Conv4. A name stands for all layers below it too: ``blocks.3`` is the fourth
block. A place counts from 0, or from the end by -1, -2, ... A kind stands for all layers of it, of which a network may
have none.
"""

from collections.abc import Sequence

from torch import nn

from meta_exp.config.checks import require
from meta_exp.models.norm import Affine

KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "convolution": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "linear": (nn.Linear,),
    "norm": (Affine, nn.GroupNorm, nn.RMSNorm),  # its scale and shift; further norms are refused wherever they stand
}


def layers_with_parameters(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that hold trained parameters themselves, by name, in order of definition."""
    own = {name: list(module.parameters(recurse=False)) for name, module in model.named_modules()}
    trained = [name for name, parameters in own.items() if any(p.requires_grad for p in parameters)]
    return {name: module for name, module in model.named_modules() if name in trained}


def choose_layers(model: nn.Module, choices: Sequence[str | int], key: str) -> set[str]:
    """Return the names of the layers that ``choices`` stand for, each a name, a place or a kind; a name comes first.

    Raises:
        ValueError: the network has no such layer; it is told by ``key``.
    """
    layers = layers_with_parameters(model)
    names = list(layers)
    chosen: set[str] = set()
    for choice in choices:
        if isinstance(choice, int):
            found = [names[choice]] if -len(names) <= choice < len(names) else []
        else:
            found = [name for name in names if name == choice or name.startswith(f"{choice}.")]
            if not found and choice in KINDS:
                chosen |= {name for name, layer in layers.items() if isinstance(layer, KINDS[choice])}
                continue
        expected, remedy = f"layers among {', '.join(names)}, or their places", f"or a kind: {', '.join(KINDS)}"
        require(len(found) > 0, key, expected, choice, remedy)
        chosen |= set(found)
    return chosen


def parameters_of(model: nn.Module, layers: set[str]) -> tuple[str, ...]:
    """Return the names of the trained parameters that the ``layers`` hold, in order of definition."""
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    return tuple(name for name in trained if name.rpartition(".")[0] in layers)
