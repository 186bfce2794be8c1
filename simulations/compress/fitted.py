"""4 and 8 bits fitted to public text: GPTQ, AWQ and SmoothQuant."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from client.int4 import dequantize_int4, quantize_int4
from client.quantization import linear_modules
from simulations.compress.blocks import Inputs, blocks_of, inputs_of_block, matrix_of
from simulations.compress.folding import Pair, fold, pairs_of
from simulations.compress.protocol import Compressed, Work
from simulations.compress.surgeon import DAMPING, inverse_factor, quantize

_GRID = 20
_SMALLEST = 1e-4
SMOOTHING = 0.5
"""Part of an input channel's size that SmoothQuant moves into the weights, as an exponent."""


@dataclass(frozen=True, slots=True)
class GPTQ:
    """4 bits, column by column, the rest of a row making up for each rounding error."""

    about: str = "4 bits, each rounding error made up for by the weights after it (GPTQ)"
    calibrates: bool = True
    reads: tuple[str, ...] = ("rows", "length")

    def compress(self, work: Work) -> Compressed:
        """Quantise block after block, each fitted to what the blocks before it now give out."""
        model, rows = work.base.model, work.calibration()
        _, blocks = blocks_of(model)
        codes = {}
        for index in range(len(blocks)):
            for name, seen in inputs_of_block(model, index, rows).items():
                matrix = matrix_of(model.get_submodule(name))
                codes[name] = quantize(matrix, inverse_factor(seen.gram))
                matrix.copy_(dequantize_int4(*codes[name], matrix.shape[1]))
            work.step(index + 1, len(blocks))
        return Compressed(model=model, storage="int4", codes=codes, parameters={"damping": DAMPING})


@dataclass(frozen=True, slots=True)
class AWQ:
    """4 bits to nearest, after scales that make the channels with large inputs finer."""

    about: str = "4 bits, channels with large inputs scaled up first (AWQ)"
    calibrates: bool = True
    reads: tuple[str, ...] = ("rows", "length")

    def compress(self, work: Work) -> Compressed:
        """Search one exponent per pair, fold its scales, and round (arXiv 2306.00978)."""
        model, rows = work.base.model, work.calibration()
        pairs = pairs_of(work.base.family)
        name, blocks = blocks_of(model)
        exponents = []
        for index, block in enumerate(blocks):
            seen = inputs_of_block(model, index, rows)
            for pair in pairs:
                inputs = seen[f"{name}.{index}.{pair.users[0]}"]
                exponent, scale = best_scale(block, pair, inputs)
                fold(block, pair, scale)
                exponents.append(exponent)
            work.step(index + 1, len(blocks))
        codes = {n: quantize_int4(matrix_of(m)) for n, m in linear_modules(model)}
        return Compressed(
            model=model, storage="int4", codes=codes, parameters={"exponents": exponents}
        )


@dataclass(frozen=True, slots=True)
class SmoothQuant:
    """8 bits, with the peaks of the activations moved into the weights.

    fedslm never quantises activations (one scale for a batch would tie its examples together), so
    here nothing is gained in quality; what comes out is ready for a runtime that does.
    """

    about: str = "8 bits, activation peaks moved into the weights for W8A8 runtimes (SmoothQuant)"
    calibrates: bool = True
    reads: tuple[str, ...] = ("rows", "length")

    def compress(self, work: Work) -> Compressed:
        """Fold the scales of the norms (arXiv 2211.10438, equation 4)."""
        model, rows = work.base.model, work.calibration()
        name, blocks = blocks_of(model)
        pairs = [
            pair
            for pair in pairs_of(work.base.family)
            if "layernorm" in pair.source or pair.source.startswith("ln_")
        ]
        for index, block in enumerate(blocks):
            seen = inputs_of_block(model, index, rows)
            for pair in pairs:
                inputs = seen[f"{name}.{index}.{pair.users[0]}"]
                fold(block, pair, smoothing_scale(block, pair, inputs))
            work.step(index + 1, len(blocks))
        return Compressed(model=model, storage="int8", parameters={"smoothing": SMOOTHING})


def best_scale(block: torch.nn.Module, pair: Pair, inputs: Inputs) -> tuple[float, torch.Tensor]:
    """Return AWQ's exponent and scales for a pair: the least error of its users' outputs.

    The error of a user is ``||(Q(W s) / s - W) X||^2``, taken from the Gram matrix of X. Exponent 0
    is plain rounding, so that the error is never above it on the calibration rows.
    """
    mean = (inputs.total / max(inputs.count, 1)).clamp(min=_SMALLEST)
    best: tuple[float, float, torch.Tensor] | None = None
    for step in range(_GRID):
        exponent = step / _GRID
        scale = mean**exponent
        scale = (scale / (scale.max() * scale.min()).sqrt()).float()
        error = sum(
            _error(matrix_of(block.get_submodule(user)), scale, inputs.gram) for user in pair.users
        )
        if best is None or error < best[0]:
            best = (float(error), exponent, scale)
    if best is None:  # pragma: no cover  (the grid is not empty)
        return 0.0, torch.ones_like(mean).float()
    return best[1], best[2]


def smoothing_scale(block: torch.nn.Module, pair: Pair, inputs: Inputs) -> torch.Tensor:
    """Return ``max|X_j|^a / max|W_j|^(1-a)`` for every input channel j of a pair."""
    users = [matrix_of(block.get_submodule(user)).abs().amax(dim=0) for user in pair.users]
    peaks = torch.stack(users).amax(dim=0).double().clamp(min=_SMALLEST)
    scale = inputs.peak.clamp(min=_SMALLEST) ** SMOOTHING / peaks ** (1 - SMOOTHING)
    return scale.clamp(min=_SMALLEST).float()


def _error(matrix: torch.Tensor, scale: torch.Tensor, gram: torch.Tensor) -> float:
    """Return the squared error of a layer's outputs after rounding under a scale."""
    rounded = dequantize_int4(*quantize_int4(matrix * scale), matrix.shape[1]) / scale
    off = (rounded - matrix).double()
    return float(((off @ gram) * off).sum())
