"""Layer inputs and output gradients of a network, recorded without touching its code.

A forward hook on a layer records the layer's input a and adds a zero z to its output; the gradient with respect to z
is the output gradient g. For a linear layer the gradient of its weight is then the outer product g a^T.

Hooks are set once and sleep outside ``linearize``, so that torch.compile can trace through them; they work under
functional_call, vjp and vmap, where full-backward hooks raise.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from copy import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp

from meta_exp.adaptation import Params
from meta_exp.config.checks import require
from meta_exp.models.layers import layers_with_parameters as layers_with_parameters
from meta_exp.models.norm import Affine
from meta_exp.models.probe import couples_points

Layers = dict[str, Tensor]
Pullback = Callable[[Tensor], tuple[Layers]]
OutputsInputs = tuple[Tensor, Layers]  # named here: torch.compile cannot build the type inside a traced function
SUPPORTED = (nn.Linear, nn.Conv2d, Affine)


def _unfolds(layer: nn.Conv2d) -> bool:
    """Whether the layer is one matrix product with the patches that ``torch.nn.functional.unfold`` gives."""
    return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _keep(results: Layers, name: str) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
        results[name] = output

    return hook


class Taps:
    """Hooks on the named ``layers`` of ``model``.

    Attributes:
        coupled: whether an output depends on other points of its batch.
        outputs: dimensions of an output.
        final: the layers whose result is the network's output itself.

    Raises:
        ValueError: a layer is of a kind that is not treated, shares its parameters with another, or is not called
            exactly once.
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int], layers: dict[str, nn.Module]) -> None:
        self.model = model
        self.layers = layers
        for name, module in self.layers.items():
            kinds = ", ".join(kind.__name__ for kind in SUPPORTED)
            treated = isinstance(module, SUPPORTED) and (not isinstance(module, nn.Conv2d) or _unfolds(module))
            expected = f"one of {kinds} (ungrouped, padded by a number of zeros)"
            require(treated, f"curvature on layer {name!r}", expected, module)
            whole = all(parameter.requires_grad for parameter in module.parameters(recurse=False))
            require(whole, f"curvature on layer {name!r}", "a layer trained or frozen as a whole", "a part of each")
        uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
        require(max(uses.values()) == 1, "curvature", "layers with parameters of their own", "shared parameters")
        self.coupled = couples_points(model, input_shape)
        self._zeros: Layers | None = None
        self._inputs: Layers = {}
        results: Layers = {}
        handles = [module.register_forward_hook(_keep(results, name)) for name, module in self.layers.items()]
        with torch.no_grad():
            parameter = next(model.parameters())
            example = torch.zeros(2, *input_shape, dtype=parameter.dtype, device=parameter.device)
            outputs = model(example)
        for handle in handles:
            handle.remove()
        for name, module in self.layers.items():
            require(name in results, f"curvature on layer {name!r}", "a layer that the forward pass calls", "none")
            module.register_forward_hook(self._tap(name))
        self.outputs = outputs.shape[1]
        self.final = [name for name, result in results.items() if result is outputs]
        self._shapes = {name: result.shape[1:] for name, result in results.items()}

    def without(self, layers: Collection[str]) -> "Taps":
        """Return hooks of their own on the layers that are not among the named ``layers``."""
        if self.layers.keys().isdisjoint(layers):
            return self
        rest = copy(self)
        rest.layers = {name: layer for name, layer in self.layers.items() if name not in layers}
        rest.final = [name for name in self.final if name in rest.layers]
        rest._shapes = {name: self._shapes[name] for name in rest.layers}
        for name, layer in rest.layers.items():
            layer.register_forward_hook(rest._tap(name))
        return rest

    def linearize(self, params: Params, x: Tensor) -> tuple[Tensor, Layers, Pullback]:
        """Run the network at x [N, *features].

        Returns:
            outputs [N, C]; the input [N, ...] of each layer; and a function that maps a cotangent [N, C] to a 1-tuple
            holding the output gradient [N, ...] of each layer.
        """

        def forward(zeros: Layers) -> OutputsInputs:
            self._zeros, self._inputs = zeros, {}
            try:
                outputs = functional_call(self.model, params, (x,))
                return outputs, self._inputs
            finally:
                self._zeros, self._inputs = None, {}

        zeros = {name: x.new_zeros(len(x), *shape) for name, shape in self._shapes.items()}
        outputs, pullback, inputs = vjp(forward, zeros, has_aux=True)  # type: ignore[misc]
        return outputs, inputs, pullback

    def _tap(self, name: str) -> Callable[..., Tensor | None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
            if self._zeros is None:
                return None
            require(name not in self._inputs, f"curvature on layer {name!r}", "one call a forward pass", "several")
            self._inputs[name] = inputs[0]
            return output + self._zeros[name]

        return hook
