"""Zeros where weights matter least: Wanda, SparseGPT and the 2:4 pattern.

The folder stays in float32 and loads as any other; zeros stay zeros when it is quantised to int4 or
int8 on loading, or compressed again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from simulations.compress.blocks import Inputs, blocks_of, inputs_of_block, matrix_of
from simulations.compress.protocol import Compressed, Settings, Work
from simulations.compress.surgeon import inverse_factor, prune, require_pattern, smallest

_PATTERN = (2, 4)


@dataclass(frozen=True, slots=True)
class Pruner:
    """Prunes block after block.

    Attributes:
        score: ``"wanda"`` takes |W| times the norm of its inputs, row by row, and changes nothing
            else; ``"sparsegpt"`` lets what stays make up for what goes.
        pattern: 2 of each 4 neighbours, or None for anywhere.
    """

    score: str
    about: str
    pattern: tuple[int, int] | None = None
    calibrates: bool = True
    reads: tuple[str, ...] = ("rows", "length", "sparsity")

    def compress(self, work: Work) -> Compressed:
        """Prune every linear layer."""
        model, rows = work.base.model, work.calibration()
        _, blocks = blocks_of(model)
        zeros = total = 0
        for index in range(len(blocks)):
            for name, seen in inputs_of_block(model, index, rows).items():
                matrix = matrix_of(model.get_submodule(name))
                matrix.copy_(self._pruned(matrix, seen, work.settings))
                zeros += int((matrix == 0).sum())
                total += matrix.numel()
            work.step(index + 1, len(blocks))
        parameters = {"zeros": round(zeros / total, 4), "score": self.score}
        if self.pattern is not None:
            parameters["pattern"] = "{}:{}".format(*self.pattern)
        return Compressed(model=model, storage="none", parameters=parameters)

    def _pruned(self, matrix: torch.Tensor, seen: Inputs, settings: Settings) -> torch.Tensor:
        """Return a layer's matrix with its zeros."""
        if self.score == "wanda":
            return wanda(matrix, seen.gram, settings.sparsity, self.pattern)
        factor = inverse_factor(seen.gram)
        return prune(matrix, factor, sparsity=settings.sparsity, pattern=self.pattern)


def wanda(
    matrix: torch.Tensor,
    gram: torch.Tensor,
    sparsity: float,
    pattern: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Return a matrix without the weights of the smallest ``|W_ij| ||X_j||`` (arXiv 2306.11695).

    Args:
        matrix: ``(d_out, d_in)``.
        gram: sum of ``x x^T`` over the inputs.
        sparsity: part of every row that goes.
        pattern: takes 2 of each 4 instead.

    Raises:
        InvalidValue: if the width is no multiple of the pattern's.
    """
    require_pattern(matrix.shape[1], pattern)
    scores = matrix.abs().double() * gram.diagonal().sqrt()
    if pattern is None:
        return matrix.masked_fill(smallest(scores, sparsity), 0.0)
    groups = smallest(scores.view(-1, pattern[1]), pattern[0] / pattern[1])
    return matrix.masked_fill(groups.view_as(scores), 0.0)


WANDA = Pruner("wanda", "zeros where |weight| times input norm is least (Wanda)")
SPARSEGPT = Pruner("sparsegpt", "zeros, what stays makes up for what goes (SparseGPT)")
TWO_OF_FOUR = Pruner(
    "sparsegpt",
    "two zeros among four neighbours, by SparseGPT",
    _PATTERN,
    reads=("rows", "length"),
)
