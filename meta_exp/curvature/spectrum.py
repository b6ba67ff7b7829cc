"""Cholesky factors, what they solve, and eigenvalues in float64, with NaN where there is none to give.

NaN goes on to the objective then, whose guard names the remedy, and to the scores, which name the task; LAPACK would
raise, or say nothing. Gradients go through eigenvalues alone, never through eigenvectors, so that repeated eigenvalues
(every rank-deficient matrix has them) do no harm, and in float64 too: a small eigenvalue has a large share in a log det
under a weak prior, and in float32 a derivative that is wrong many times over.
"""

import torch
from torch import Tensor

from meta_exp.curvature.gram import gram


def cholesky(matrix: Tensor) -> Tensor:
    """Cholesky factor of a float64 matrix >= I, or NaN where float64 has lost the I beside its largest eigenvalue.

    No entry of the factor's diagonal is below 1 then, so that one below 1/2 is rounding: of eigenvalues beyond 1e15 or
    so, as a singular G G^T / tau has them where tau is next to nothing.
    """
    factor = torch.linalg.cholesky_ex(matrix).L
    return factor.masked_fill(~(factor.diagonal().amin() >= 0.5), torch.nan)


def solve(factor: Tensor, b: Tensor) -> Tensor:
    """Return (L L^T)^-1 b for a Cholesky factor L and b [n, k]."""
    if factor.device.type == "cpu":
        return torch.cholesky_solve(b, factor)
    half = torch.linalg.solve_triangular(factor, b, upper=False)  # MAGMA's, of batches on a GPU, fits in no CUDA graph
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def eigenvalues(x: Tensor) -> Tensor:
    """Eigenvalues >= 0 of x^T x for x [n, d], by the smaller Gram matrix: min(n, d) of them, any others are zeros."""
    x = x.double()
    products, offset = _finite(gram(x if len(x) < x.shape[1] else x.mT))
    return _above_rounding(torch.linalg.eigvalsh(products)) + offset


def eigenbasis(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same eigenvalues, and their eigenvectors [d, min(n, d)]."""
    x, offset = _finite(x.double())
    if len(x) < x.shape[1]:
        _, roots, vectors = torch.linalg.svd(x, full_matrices=False)
        return roots**2 + offset, vectors.mT
    values, vectors = torch.linalg.eigh(x.T @ x)
    return _above_rounding(values) + offset, vectors


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a symmetric matrix."""
    matrix, offset = _finite(matrix.double())
    values, vectors = torch.linalg.eigh(matrix)
    return values + offset, vectors


def _above_rounding(values: Tensor) -> Tensor:
    """Return ascending eigenvalues [n] of a product x^T x, with 0 for those that are no more than its rounding."""
    smallest = len(values) * torch.finfo(values.dtype).eps * values[-1:]
    return torch.where(values > smallest, values, 0.0)


def _finite(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and 0; or where an entry is not finite, zeros and NaN."""
    finite = x.isfinite().all()
    return torch.where(finite, x, 0.0), torch.where(finite, 0.0, torch.nan).to(x)
