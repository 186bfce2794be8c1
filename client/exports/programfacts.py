"""What a runtime must know of a base model beside its weights: its record; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from shared.errors import AdapterCorrupt

_LARGEST = 1 << 31
_MOST_ENDS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramFacts:
    """A base model in the format of another runtime.

    Attributes:
        file: of the program or the weights, within the export.
        window: most tokens of a text; None without a limit.
        vocabulary: how many tokens there are.
        bos: the token that begins a text; None without one.
        eos: the token that ends one; None without one.
        ends: every token that ends a text.
        kv_cache: how the program keeps keys and values; "none" where the runtime chooses.
        quantization: of the weights.
    """

    file: str
    window: int | None
    vocabulary: int
    bos: int | None
    eos: int | None
    ends: tuple[int, ...]
    kv_cache: str = "none"
    quantization: str = "none"

    @classmethod
    def from_json(cls, found: object) -> ProgramFacts:
        """Read the facts of a record.

        Raises:
            AdapterCorrupt: unless it has exactly the known keys, each as it must be.
        """
        if not isinstance(found, Mapping) or set(found) != set(cls.__dataclass_fields__):
            _refuse("has other keys than this version knows")
        vocabulary, ends = found["vocabulary"], found["ends"]
        if not _whole(vocabulary, 1, _LARGEST):
            _refuse("says no number of tokens")
        tokens = [found["bos"], found["eos"]]
        tokens += ends if isinstance(ends, list) and len(ends) <= _MOST_ENDS else [-1]
        checks = {
            "file": isinstance(found["file"], str),
            "window": found["window"] is None or _whole(found["window"], 1, _LARGEST),
            "tokens": all(t is None or _whole(t, 0, vocabulary - 1) for t in tokens),
            "kv_cache": isinstance(found["kv_cache"], str),
            "quantization": isinstance(found["quantization"], str),
        }
        for name, holds in checks.items():
            if not holds:
                _refuse(f"says something else about {name} than there can be")
        return cls(**{**found, "ends": tuple(t for t in ends if t is not None)})

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "ends": list(self.ends)}


def _whole(value: object, least: int, most: int) -> bool:
    """Tell whether a value is an integer of a range; a boolean is none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _refuse(what: str) -> NoReturn:
    """Raise the error of a record."""
    msg = f"The program of the export {what}."
    raise AdapterCorrupt(msg, hint="Is the server newer than this program? Export it again.")
