"""What a compression method is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shared.errors import InvalidValue
from shared.validate import positive_integer

if TYPE_CHECKING:
    import torch

    from client.model import BaseModel
    from simulations.compress.text import PublicText

Codes = Mapping[str, "tuple[torch.Tensor, torch.Tensor]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How methods compress.

    Attributes:
        rows: rows of public tokens that are calibrated on.
        length: tokens of a row.
        sparsity: part of the weights that goes, in (0, 1); methods that prune.
        layers: blocks that stay; None is three quarters of them. Methods that drop blocks.
        steps: optimiser steps of a distillation.
        seed: of the generated text.
    """

    rows: int = 32
    length: int = 128
    sparsity: float = 0.5
    layers: int | None = None
    steps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every number; booleans and NaN do not pass."""
        positive_integer(rows=self.rows, length=self.length, steps=self.steps)
        if isinstance(self.sparsity, bool) or not 0 < self.sparsity < 1:
            msg = f"sparsity={self.sparsity!r}, expected a number in (0, 1)."
            raise InvalidValue(msg)
        if self.layers is not None:
            positive_integer(layers=self.layers)
        if not self.length >= 2:
            msg = f"length={self.length}, expected at least 2: one token to read, one to predict."
            raise InvalidValue(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a method works with.

    Attributes:
        base: in full precision; a method changes its model in place.
        text: public text.
        settings: how.
        scratch: a folder that survives an interruption, for what a long method has done so far.
        step: called with (done, of) as work goes on.
    """

    base: BaseModel
    text: PublicText
    settings: Settings
    scratch: Path
    step: Callable[[int, int], None] = lambda done, of: None

    def calibration(self) -> torch.Tensor:
        """Return the rows that are calibrated on, int64 ``(rows, length)``."""
        settings = self.settings
        return self.text.rows(
            self.base.tokenizer, "calibration", count=settings.rows, length=settings.length
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """A compressed model before it is written.

    Attributes:
        model: in full precision, with the values that will be stored (of ``codes``) or that will
            be quantised when written (int8, nf4).
        storage: ``model.quantization`` of the folder that comes out.
        codes: packed 4-bit codes and scales of each linear layer; for storage ``"int4"``.
        parameters: what the manifest records beside the settings that were read.
    """

    model: Any
    storage: str
    codes: Codes = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Compressor(Protocol):
    """A compression method."""

    @property
    def about(self) -> str:
        """One line for people."""
        ...

    @property
    def calibrates(self) -> bool:
        """Whether it reads text at all."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the settings that change its result; the manifest records them."""
        ...

    def compress(self, work: Work) -> Compressed:
        """Compress a base.

        Raises:
            UnsupportedModel: if the method cannot handle the model; says why.
        """
        ...
