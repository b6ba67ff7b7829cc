"""Eigenvalues in float64 that let numbers which are not finite through, where LAPACK would raise.

NaN goes on to the objective then, whose guard names the remedy. Gradients go through eigenvalues alone, never through
eigenvectors, so that repeated eigenvalues (every rank-deficient matrix has them) do no harm.
"""

import torch
from torch import Tensor


def eigenvalues(x: Tensor) -> Tensor:
    """Eigenvalues >= 0 of x^T x for x [n, d], by the smaller Gram matrix: min(n, d) of them, any others are zeros."""
    x, offset = _finite(x)
    return torch.linalg.eigvalsh(_gram(x if len(x) < x.shape[1] else x.mT)).clamp_min(0) + offset


def eigenbasis(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same eigenvalues, and their eigenvectors [d, min(n, d)]."""
    x, offset = _finite(x.double())
    if len(x) < x.shape[1]:
        _, roots, vectors = torch.linalg.svd(x, full_matrices=False)
        return roots**2 + offset, vectors.mT
    values, vectors = torch.linalg.eigh(x.T @ x)
    return values.clamp_min(0) + offset, vectors


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a symmetric matrix."""
    matrix, offset = _finite(matrix.double())
    values, vectors = torch.linalg.eigh(matrix)
    return values + offset, vectors


def _gram(x: Tensor) -> Tensor:
    """Return x x^T in float64, with a derivative in the precision of x, which is what it ends in.

    The derivative's products are twice as many as the value's, and several times slower in float64.
    """
    product, exact = x @ x.mT, x.detach().double()
    return exact @ exact.mT + (product - product.detach())


def _finite(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and 0; or where an entry is not finite, zeros and NaN."""
    finite = x.isfinite().all()
    return torch.where(finite, x, 0.0), torch.where(finite, 0.0, torch.nan).to(x)
