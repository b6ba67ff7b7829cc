"""Float32 products as precise as they are asked for: also convolutions' on GPUs, and by oneDNN on CPUs.

PyTorch lets a GPU take convolutions in TF32 unless it is told otherwise, whatever the precision of products of matrices
is, and add up their derivatives in any order. Here they follow that precision, and give the same bits each time.

On CPUs PyTorch takes them by MKL, which on AMD's processors uses half of the width of AVX-512: 100 GFLOP/s a core where
oneDNN reaches 200. oneDNN may take them once PyTorch's precision is ``medium``, which permits bf16 inside. Only
processors with units for products of bf16 matrices make use of that; the others compute in float32 all the same, which
a trial shows. Small products, as those of a perceptron on curves, are faster by MKL everywhere.
"""

from collections.abc import Callable

import torch
from torch import Tensor

SHAPES = [(245, 576, 64), (64, 245, 576), (245, 64, 576)]  # of a convolution's product and its two derivatives
FLOAT32 = 2e-6  # relative to the sum of absolute terms: float32 errs by a tenth of this, bf16 by a thousand times it


def set_precision(precision: str, images: bool) -> None:
    """Set PyTorch's precision of products; ``highest``, on images, lets oneDNN take those that stay as precise."""
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"
    torch.backends.cudnn.deterministic = True
    if precision == "highest" and images and not torch.cuda.is_available():
        torch.set_float32_matmul_precision("medium")
        if not precise(torch.matmul):
            torch.set_float32_matmul_precision("highest")


def precise(product: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether ``product`` of float32 matrices is as precise as float32 is."""
    generator = torch.Generator().manual_seed(0)
    for rows, inner, columns in SHAPES:
        a, b = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
        error = (product(a, b) - a.double() @ b.double()).abs() / (a.double().abs() @ b.double().abs())
        if error.max() > FLOAT32:
            return False
    return True
