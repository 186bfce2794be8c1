"""The personal adapter of a device: one file that only its owner may read, and nothing sends.

It is as sensitive as the text that it was made of: it has no privacy guarantee. It goes with
``fedslm client personalise --forget`` and ``fedslm client forget``.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.documents import is_digest
from shared.errors import AdapterCorrupt
from shared.lora import Factors
from shared.privatefiles import make_private_folder, read_private, remove_file, replace_private

NAME: Final = "adapter.safetensors"
LARGEST: Final = 1 << 30

_LARGEST_FACTS = 1 << 16
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonalFacts:
    """What is known about a personal adapter.

    Attributes:
        adapter: digest of the shared adapter that it began at.
        steps: local steps.
        learning_rate: of these steps.
        created: UTC, ``YYYY-MM-DDTHH:MM:SSZ``.
        loss_before: held-out loss with the shared adapter; None if nothing is held out.
        loss_after: the same with the personal one.
    """

    adapter: str
    steps: int
    learning_rate: float
    created: str
    loss_before: float | None
    loss_after: float | None


class PersonalStore:
    """The personal adapter in a device's folder.

    Args:
        folder: made with mode 700 when the first one is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def facts(self) -> PersonalFacts | None:
        """Return what is known about the adapter; None if there is none.

        Raises:
            AdapterCorrupt: if the file is damaged.
            FleetError: if others may read it.
        """
        found = self._read()
        return None if found is None else found[0]

    def load(self, expected: Mapping[str, tuple[int, ...]]) -> tuple[PersonalFacts, Factors] | None:
        """Return the adapter; None if there is none.

        Args:
            expected: shape of each factor by name.

        Raises:
            AdapterCorrupt: if the file is damaged, or its factors are others.
            FleetError: if others may read it.
        """
        found = self._read()
        if found is None:
            return None
        facts, data = found
        try:
            factors = load(data)
        except (SafetensorError, ValueError, KeyError) as error:
            _corrupt(error)
        if {name: values.shape for name, values in factors.items()} != dict(expected):
            _corrupt(None)
        for values in factors.values():
            if values.dtype != np.float32 or not bool(np.isfinite(values).all()):
                _corrupt(None)
        return facts, factors

    def keep(self, facts: PersonalFacts, factors: Factors) -> None:
        """Put an adapter in the place of what is there.

        Raises:
            FleetError: if the folder cannot be written, or others may look into it.
            OutOfDisk: if no space is left; what was there is intact then.
        """
        make_private_folder(self._path.parent)
        said = {"fedslm": json.dumps(asdict(facts))}
        tensors = {name: np.ascontiguousarray(values) for name, values in factors.items()}
        replace_private(self._path, save(tensors, metadata=said))

    def forget(self) -> bool:
        """Remove the adapter; tell whether there was one.

        Raises:
            FleetError: if it cannot be removed.
        """
        return self._path.parent.is_dir() and remove_file(self._path)

    def _read(self) -> tuple[PersonalFacts, bytes] | None:
        """Return the facts and the bytes that they were read from."""
        if not self._path.exists():
            return None
        data = read_private(self._path, max_bytes=LARGEST)
        try:
            return _facts(data), data
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            _corrupt(error)


def _facts(data: bytes) -> PersonalFacts:
    """Read the facts out of the header of a safetensors file.

    Raises:
        ValueError: or KeyError or TypeError, for anything else.
    """
    stream = io.BytesIO(data)
    length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    if not 0 < length <= min(len(data), LARGEST):
        msg = "no header"
        raise ValueError(msg)
    text = json.loads(stream.read(length))["__metadata__"]["fedslm"]
    if len(text) > _LARGEST_FACTS:
        msg = "too long"
        raise ValueError(msg)
    facts = PersonalFacts(**json.loads(text))
    losses = (facts.loss_before, facts.loss_after)
    numbers = [facts.learning_rate, *(loss for loss in losses if loss is not None)]
    right = (
        is_digest(facts.adapter)
        and type(facts.steps) is int
        and facts.steps > 0
        and isinstance(facts.created, str)
        and all(_is_number(number) for number in numbers)
    )
    if not right:
        msg = "not the facts of a personal adapter"
        raise ValueError(msg)
    return facts


def _is_number(value: Any) -> bool:  # noqa: ANN401 - whatever JSON holds
    """Tell whether a value is a finite number."""
    return type(value) in {int, float} and math.isfinite(value)


def _corrupt(error: Exception | None) -> NoReturn:
    """Raise the error of a file that is not used."""
    msg = "The personal adapter of this device is damaged, or belongs to other layers."
    hint = "Make it again: fedslm client personalise; or remove it with --forget."
    raise AdapterCorrupt(msg, hint=hint) from error
