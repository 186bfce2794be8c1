"""ONNX Runtime's errors, which may quote values, as one of ours without a cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import BaseModelMismatch

_KINDS = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile")


@contextmanager
def onnx_failures(program: str, hint: str) -> Iterator[None]:
    """Turn what ONNX Runtime raises inside the ``with`` block into one error by its class alone.

    Args:
        program: what is run, in words.
        hint: what to do.

    Raises:
        BaseModelMismatch: if the runtime cannot load or run it.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = tuple(getattr(state, name) for name in (*_KINDS, "NotImplemented", "RuntimeException"))
    reason = ""
    try:
        yield
    except kinds as error:
        reason = type(error).__name__
    if reason:
        msg = f"ONNX Runtime cannot run {program} ({reason})."
        raise BaseModelMismatch(msg, hint=f"{hint}; onnxruntime's version is pinned.")
