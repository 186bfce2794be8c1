"""One solver for GPTQ and SparseGPT: change a weight, and let those after it make up for it.

Both minimise ``||(W - W') X||^2`` column by column. With H = X X^T and U the upper Cholesky factor
of the inverse of H, fixing column j with error e moves each later column k by ``- e U_jk / U_jj``
(Frantar and others, "GPTQ", arXiv 2210.17323, and "SparseGPT", arXiv 2301.00774).
"""

from __future__ import annotations

import torch

from client.int4 import GROUP, codes_of, group_count, group_scales, pack_int4
from shared.errors import InvalidValue

DAMPING = 0.01
"""Added to the diagonal of H, as a part of its mean."""
_PRUNED_AT_ONCE = 128


def inverse_factor(gram: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """Return the upper Cholesky factor of the inverse of a damped Gram matrix, float64.

    Args:
        gram: ``(d_in, d_in)``, a sum of ``x x^T``; an input that was never seen counts as one of
            the mean size.
        damping: as :data:`DAMPING`.
    """
    damped = gram.double().clone()
    diagonal = damped.diagonal()
    mean = float(diagonal.mean()) or 1.0
    diagonal[diagonal == 0] = mean
    diagonal += damping * mean
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def quantize(weight: torch.Tensor, factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 4-bit codes and scales of a matrix by GPTQ.

    Scales follow the rule of :mod:`client.int4`, from the weights of a group as they are when its
    turn comes. With a diagonal H nothing moves, and this is rounding to nearest.

    Args:
        weight: ``(d_out, d_in)``.
        factor: as :func:`inverse_factor` returns it.

    Returns:
        What :func:`client.int4.quantize_int4` returns.
    """
    left = weight.double().clone(memory_format=torch.contiguous_format)
    rows, columns = left.shape
    groups = group_count(columns)
    codes = torch.zeros((rows, groups, GROUP))
    scales = torch.zeros((rows, groups), dtype=torch.float16)
    for group in range(groups):
        start, stop = group * GROUP, min((group + 1) * GROUP, columns)
        block, corner = left[:, start:stop], factor[start:stop, start:stop]
        scales[:, group] = group_scales(block.float())
        spread = scales[:, group].double()
        errors = torch.zeros_like(block)
        for j in range(stop - start):
            code = codes_of(block[:, j : j + 1].float(), scales[:, group])
            codes[:, group, j] = code[:, 0]
            errors[:, j] = (block[:, j] - code[:, 0].double() * spread) / corner[j, j]
            block[:, j + 1 :] -= torch.outer(errors[:, j], corner[j, j + 1 :])
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return pack_int4(codes), scales


def prune(
    weight: torch.Tensor,
    factor: torch.Tensor,
    *,
    sparsity: float = 0.5,
    pattern: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Return a matrix with zeros by SparseGPT; those that stay make up for those that go.

    Args:
        weight: ``(d_out, d_in)``.
        factor: as :func:`inverse_factor` returns it.
        sparsity: part of each 128 columns that goes, wherever it is in them.
        pattern: ``(2, 4)`` takes 2 of each 4 neighbours of a row, and ``sparsity`` is not read.

    Raises:
        InvalidValue: if the width is no multiple of the pattern's.
    """
    left = weight.double().clone(memory_format=torch.contiguous_format)
    columns = left.shape[1]
    require_pattern(columns, pattern)
    for start in range(0, columns, _PRUNED_AT_ONCE):
        stop = min(start + _PRUNED_AT_ONCE, columns)
        block, corner = left[:, start:stop], factor[start:stop, start:stop]
        spread = corner.diagonal() ** 2
        goes = torch.zeros_like(block, dtype=torch.bool)
        if pattern is None:
            goes = smallest((block**2 / spread).view(1, -1), sparsity).view_as(block)
        errors = torch.zeros_like(block)
        for j in range(stop - start):
            if pattern is not None and j % pattern[1] == 0:
                part = slice(j, j + pattern[1])
                scores = block[:, part] ** 2 / spread[part]
                goes[:, part] = smallest(scores, pattern[0] / pattern[1])
            kept = torch.where(goes[:, j], 0.0, block[:, j])
            errors[:, j] = (block[:, j] - kept) / corner[j, j]
            block[:, j] = kept
            block[:, j + 1 :] -= torch.outer(errors[:, j], corner[j, j + 1 :])
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return left.to(weight.dtype)


def smallest(scores: torch.Tensor, part: float) -> torch.Tensor:
    """Return a mask of the smallest scores of every row: ``int(part * columns)`` of each."""
    count = int(part * scores.shape[1])
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask.scatter_(1, scores.argsort(dim=1, stable=True)[:, :count], value=True)
    return mask


def require_pattern(columns: int, pattern: tuple[int, int] | None) -> None:
    """Refuse a pattern that the rows of a matrix do not divide into.

    Raises:
        InvalidValue: if so.
    """
    if pattern is not None and columns % pattern[1] != 0:
        msg = f"Rows of {columns} weights are no multiple of {pattern[1]}."
        raise InvalidValue(msg, hint="Use method 'sparsegpt' or 'wanda' for this model.")
