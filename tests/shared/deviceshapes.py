"""Shapes and adapters that device tests share, written down by hand."""

from __future__ import annotations

from shared.baseshape import GEMMA_270M, BaseShape
from shared.lora import AdapterSpec, Factor

HIDDEN, INNER, LAYERS, KEYS, WORDS = 128, 344, 4, 64, 1280

DEMO = BaseShape(
    linears=LAYERS
    * (
        (HIDDEN, HIDDEN),
        (KEYS, HIDDEN),
        (KEYS, HIDDEN),
        (HIDDEN, HIDDEN),
        (INNER, HIDDEN),
        (INNER, HIDDEN),
        (HIDDEN, INNER),
    ),
    other_parameters=WORDS * HIDDEN + LAYERS * 2 * HIDDEN + HIDDEN,
    layers=LAYERS,
    hidden=HIDDEN,
    attention=HIDDEN,
    key_value=KEYS,
    inner=INNER,
    vocabulary=WORDS,
)
"""The embedded demo model."""


def spec_of(linears: tuple[tuple[int, int], ...], r: int) -> AdapterSpec:
    """Return an adapter on some linear layers."""
    factors = []
    for number, (rows, columns) in enumerate(linears):
        stem = f"layer{number:04d}.lora_"
        factors.append(Factor(name=f"{stem}A.weight", kind="A", shape=(r, columns)))
        factors.append(Factor(name=f"{stem}B.weight", kind="B", shape=(rows, r)))
    return AdapterSpec(factors=tuple(factors), r=r, lora_alpha=2.0 * r, target_modules=("x",))


ATTENTION_270M = tuple(linear for number, linear in enumerate(GEMMA_270M.linears) if number % 7 < 4)
"""q, k, v and o of Gemma-3 270M."""
