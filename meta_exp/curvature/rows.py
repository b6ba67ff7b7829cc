r"""Rows of a Jacobian, held layer by layer and never joined into one matrix as wide as all parameters.

A row is the gradient of one direction of one output with respect to the parameters. Within a layer it is a matrix
[O, I] with the bias as its last column:

    Linear      g a^T                   one outer product where points are independent
    Conv2d      sum over positions of g a^T, with a = patches of the input
    Affine      sum over positions of [g a, g], per channel

A layer's rows enter the Gram matrix G G^T; for outer products it is (a a^T) * (g g^T), elementwise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from meta_exp.adaptation import Params
from meta_exp.curvature.gram import gram
from meta_exp.curvature.taps import Layers, Pullback, Taps
from meta_exp.models.norm import Affine


@dataclass(frozen=True)
class Outer:
    """Rows g_r [a_r; 1]^T of one linear layer: ``g`` [R, O], ``a`` [R, I]; the 1 is there if it has a ``bias``."""

    g: Tensor
    a: Tensor
    bias: bool

    def __len__(self) -> int:
        return len(self.g)

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows' entries."""
        return self.g.dtype

    @property
    def inputs(self) -> Tensor:
        """The rows' right factors [R, I] or [R, I + 1]."""
        return torch.cat([self.a, torch.ones_like(self.a[:, :1])], 1) if self.bias else self.a

    def gram(self, other: Any) -> Tensor:
        """Inner products [R, R'] with the rows of another block of the same layer and kind, in float64."""
        return (_products(self.a, other.a) + self.bias) * _products(self.g, other.g)

    def apply(self, matrix: Tensor) -> Tensor:
        """Inner products [R] with a parameter matrix [O, I]."""
        return ((self.g @ matrix) * self.inputs).sum(-1)

    def combine(self, weights: Tensor) -> Tensor:
        """Sum the rows with ``weights`` [R] to a parameter matrix [O, I]."""
        return (weights[:, None] * self.g).T @ self.inputs

    def squares(self, group: int) -> Tensor:
        """Inner products [R / group, group, group] among each ``group`` consecutive rows, in float64."""
        return (squares(self.a.double(), group) + self.bias) * squares(self.g.double(), group)

    def column_squares(self) -> Tensor:
        """Sum of the rows' squares, elementwise, [O, I] in float64."""
        return (self.g.double() ** 2).T @ self.inputs.double() ** 2

    def dense(self) -> Tensor:
        """The rows written out, [R, O, I]."""
        return self.g[:, :, None] * self.inputs[:, None, :]


@dataclass(frozen=True)
class Dense:
    """Rows of one layer written out: ``rows`` [R, O, I]."""

    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows' entries."""
        return self.rows.dtype

    def gram(self, other: Any) -> Tensor:
        """Inner products [R, R'] with the rows of another block of the same layer and kind, in float64."""
        return _products(self.rows.flatten(1), other.rows.flatten(1))

    def apply(self, matrix: Tensor) -> Tensor:
        """Inner products [R] with a parameter matrix [O, I]."""
        return self.rows.flatten(1) @ matrix.flatten()

    def combine(self, weights: Tensor) -> Tensor:
        """Sum the rows with ``weights`` [R] to a parameter matrix [O, I]."""
        return (weights @ self.rows.flatten(1)).view(self.rows.shape[1:])

    def squares(self, group: int) -> Tensor:
        """Inner products [R / group, group, group] among each ``group`` consecutive rows, in float64."""
        return squares(self.rows.flatten(1).double(), group)

    def column_squares(self) -> Tensor:
        """Sum of the rows' squares, elementwise, [O, I] in float64."""
        return (self.rows.double() ** 2).sum(0)

    def dense(self) -> Tensor:
        """The rows written out, [R, O, I]."""
        return self.rows


Block = Outer | Dense
Rows = dict[str, Block]
Directions = Callable[[Tensor], Tensor]
OutputsRows = tuple[Tensor, Rows]  # named here: torch.compile cannot build the type inside a traced function
Jacobian = Callable[[Tensor], OutputsRows]  # of outputs [N, C] at x, with C rows a point


def identity_directions(outputs: Tensor) -> Tensor:
    """One direction an output, [N, C, C]: the rows are then those of the plain Jacobian."""
    points, dim = outputs.shape
    return torch.eye(dim, dtype=outputs.dtype, device=outputs.device).expand(points, dim, dim)


def jacobian_rows(taps: Taps, params: Params, x: Tensor, directions: Directions) -> tuple[Tensor, Rows]:
    """Return the outputs [N, C], and the N K rows of D_n^T J_n for all points, point by point.

    Args:
        taps: the network's hooks.
        params: where to differentiate.
        x: inputs [N, *features].
        directions: maps outputs [N, C] to D [N, C, K].

    Where points are independent this takes K backward passes; where batch statistics couple them (every output depends
    on every input) it takes N K passes over the whole set, exact and dear.
    """
    outputs, inputs, pullback = taps.linearize(params, x)
    gradients = pull(pullback, cotangents(directions(outputs), taps.coupled))
    rows = {n: layer_rows(layer, inputs[n], gradients[n], taps.coupled) for n, layer in taps.layers.items()}
    return outputs, rows


def pull(pullback: Pullback, along: Tensor) -> Layers:
    """Return each layer's output gradients [passes, N, ...] along ``along`` [passes, N, C]."""
    if len(along) == 1:  # without vmap, whose bookkeeping counts in a small network
        return {name: gradient[None] for name, gradient in pullback(along[0])[0].items()}
    return vmap(pullback)(along)[0]


def cotangents(d: Tensor, coupled: bool) -> Tensor:
    """Return the columns of D [N, C, K], one a pass: all points at once, [K, N, C], or one point each, [N K, N, C]."""
    if not coupled:
        return d.permute(2, 0, 1)
    eye = torch.eye(len(d), dtype=d.dtype, device=d.device)
    return torch.einsum("nm,nck->nkmc", eye, d).flatten(0, 1)


def _products(x: Tensor, y: Tensor) -> Tensor:
    """Inner products [R, R'] of the rows of x and y, in float64."""
    return gram(x.double()) if y is x else x.double() @ y.double().T


def squares(rows: Tensor, group: int) -> Tensor:
    """Inner products [R / group, group, group] among each ``group`` consecutive rows [R, P]."""
    grouped = rows.unflatten(0, (-1, group))
    return grouped @ grouped.mT


def patches(layer: nn.Conv2d, a: Tensor) -> Tensor:
    """Return the patches of inputs a that the layer's matrix multiplies, with the bias' 1, [N, I, positions]."""
    unfolded = F.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    return with_bias(layer, unfolded)


def with_bias(layer: nn.Module, a: Tensor) -> Tensor:
    """Append the bias' constant 1 to inputs [N, I, ...] along I, where the layer has a bias."""
    return a if layer.bias is None else torch.cat([a, torch.ones_like(a[:, :1])], 1)


def to_matrix(layer: nn.Module, params: Params, name: str) -> Tensor:
    """Return a layer's parameters as a matrix [O, I], the bias last."""
    weight = params[f"{name}.weight"]
    matrix = weight.reshape(len(weight), -1)
    return matrix if layer.bias is None else torch.cat([matrix, params[f"{name}.bias"][:, None]], 1)


def to_params(layer: nn.Module, name: str, matrix: Tensor) -> Params:
    """Undo ``to_matrix``."""
    shape = layer.get_parameter("weight").shape
    if layer.bias is None:
        return {f"{name}.weight": matrix.view(shape)}
    return {f"{name}.weight": matrix[:, :-1].reshape(shape), f"{name}.bias": matrix[:, -1]}


def layer_rows(layer: nn.Module, a: Tensor, g: Tensor, coupled: bool) -> Block:
    """Make the rows of one layer of its inputs a [N, ...] and output gradients g [passes, N, ...].

    A row is a point's in a pass where points are independent, [N passes] of them, else a whole pass'.
    """
    if isinstance(layer, nn.Linear):
        if coupled:
            return Dense(torch.einsum("ni,rno->roi", with_bias(layer, a), g))
        a = a if len(g) == 1 else a.repeat_interleave(len(g), 0)
        return Outer(g.transpose(0, 1).flatten(0, 1), a, layer.bias is not None)
    if isinstance(layer, Affine):
        a, g = a.flatten(2) if a.ndim > 2 else a[..., None], g.flatten(3) if g.ndim > 3 else g[..., None]
        pattern = "ncs,rncs->rc" if coupled else "ncs,kncs->nkc"
        weight = torch.einsum(pattern, a, g)
        bias = torch.einsum(pattern, torch.ones_like(a), g)
        rows = torch.stack([weight, bias], -1)
    else:
        assert isinstance(layer, nn.Conv2d)
        pattern = "nis,rnos->roi" if coupled else "nis,knos->nkoi"
        rows = torch.einsum(pattern, patches(layer, a), g.flatten(3))
    return Dense(rows if coupled else rows.flatten(0, 1))
