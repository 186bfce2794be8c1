"""Starting with what a run uses: transformers and PEFT import every quantiser that is installed.

bitsandbytes compiles nothing here but brings torch's compiler along, and torchao is there only
because ExecuTorch needs it to export. Together they are a third of the processor time that a worker
with torch takes to start, and of no use to a base in another storage.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_QUANTIZERS: Final = ("bitsandbytes", "torchao")
# Where the two libraries remember whether a quantiser is installed.
_ANSWERS: Final = {
    "peft.import_utils": ("is_bnb_available", "is_bnb_4bit_available", "is_torchao_available"),
    "transformers.utils.import_utils": ("is_bitsandbytes_available", "is_torchao_available"),
}


@contextmanager
def without_quantizers() -> Iterator[None]:
    """Let what is imported meanwhile find no quantiser that this process has not imported yet.

    Whoever needs one imports it first: it is not hidden then. Afterwards each can be imported, and
    PEFT finds bitsandbytes again. transformers' own reader of torchao's folders, if it was imported
    meanwhile, stays without torchao; :mod:`client.torchaostore` reads them.
    """
    hidden = [name for name in _QUANTIZERS if name not in sys.modules]
    # None is how Python marks a module that must not be imported; to look for it finds nothing.
    _modules().update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name, name) is None:
                del sys.modules[name]
        if hidden:
            _forget_answers()


def _modules() -> dict[str, Any]:
    """Return the table of modules, whose type says nothing of None."""
    return sys.modules


def _forget_answers() -> None:
    """Let both libraries look again at what is installed."""
    for module, names in _ANSWERS.items():
        for name in names:
            clear = getattr(getattr(sys.modules.get(module), name, None), "cache_clear", None)
            if clear is not None:
                clear()
