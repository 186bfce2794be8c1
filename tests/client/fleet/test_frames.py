"""Frames over the pipe between node and worker."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.fleet.frames import Frame, read_frame, write_frame
from client.fleet.limits import Limits
from shared.errors import SchemaMismatch

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def written(*frames: Frame) -> bytes:
    stream = BytesIO()
    for frame in frames:
        write_frame(stream, frame)
    return stream.getvalue()


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.text(max_size=5), JSON, max_size=3),
            st.lists(st.binary(max_size=50), max_size=4),
        ),
        max_size=3,
    )
)
def test_frames_come_out_as_they_went_in(sent: list[tuple[dict[str, Any], list[bytes]]]) -> None:
    frames = [Frame(header=header, parts=parts) for header, parts in sent]
    stream = BytesIO(written(*frames))
    assert [read_frame(stream) for _ in frames] == frames
    assert read_frame(stream) is None


@given(st.binary(max_size=60))
def test_any_bytes_are_a_frame_or_are_refused(data: bytes) -> None:
    try:
        frame = read_frame(BytesIO(data))
    except SchemaMismatch:
        return
    assert frame is None or isinstance(frame.header, dict)


@given(st.integers(1, 60))
def test_a_frame_that_ends_early_is_refused(size: int) -> None:
    whole = written(Frame(header={"kind": "work"}, parts=[b"x" * 20]))
    if size < len(whole):
        with pytest.raises(SchemaMismatch):
            read_frame(BytesIO(whole[:size]))


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">II", 2**32 - 1, 0),
        struct.pack(">II", 2, 2**32 - 1),
        struct.pack(">IIQ", 2, 1, 2**63) + b"{}",
        struct.pack(">IIQQ", 2, 2, 60, 60) + b"{}" + b"x" * 120,
        struct.pack(">II", 2, 0) + b"[]",
        struct.pack(">II", 1, 0) + b"{",
        struct.pack(">II", 50_000, 0) + b"[" * 50_000,
    ],
    ids=["header", "count", "part", "sum", "list", "no json", "deep"],
)
def test_a_frame_keeps_its_bounds(data: bytes) -> None:
    limits = Limits(message_bytes=100, object_bytes=80, objects=4)
    with pytest.raises(SchemaMismatch):
        read_frame(BytesIO(data), limits=limits)
