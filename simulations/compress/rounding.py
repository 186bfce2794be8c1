"""Methods that read no text: each weight is stored as the nearest value there is."""

from __future__ import annotations

from dataclasses import dataclass

from client.int4 import quantize_int4
from client.quantization import linear_modules
from simulations.compress.blocks import matrix_of
from simulations.compress.protocol import Compressed, Work


@dataclass(frozen=True, slots=True)
class Nearest:
    """Round to nearest: in 4 bits here, in 8 bits or NF4 when the folder is written.

    Attributes:
        storage: ``"int4"``, ``"int8"``, ``"torchao-int8"`` or ``"nf4"``.
        about: see :class:`~simulations.compress.protocol.Compressor`.
    """

    storage: str
    about: str
    calibrates: bool = False
    reads: tuple[str, ...] = ()

    def compress(self, work: Work) -> Compressed:
        """Return the base as it is, with 4-bit codes if that is the storage."""
        model = work.base.model
        codes = {}
        if self.storage == "int4":
            codes = {name: quantize_int4(matrix_of(m)) for name, m in linear_modules(model)}
        return Compressed(model=model, storage=self.storage, codes=codes)
