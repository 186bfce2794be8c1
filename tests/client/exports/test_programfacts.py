"""The record of a base for another runtime: what was written is read, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.answering.program import open_program, runtime_of
from client.exports.programfacts import ProgramFacts
from client.exports.record import EXPORT
from shared.errors import AdapterCorrupt, UsageError

TOKEN = st.integers(0, 99)
FACTS = st.builds(
    ProgramFacts,
    file=st.just("model.onnx"),
    window=st.none() | st.integers(1, 1 << 31),
    vocabulary=st.integers(100, 1 << 31),
    bos=st.none() | TOKEN,
    eos=st.none() | TOKEN,
    ends=st.lists(TOKEN, max_size=64).map(tuple),
    kv_cache=st.sampled_from(["none", "int8"]),
    quantization=st.sampled_from(["none", "int4"]),
)
GOOD: dict[str, Any] = ProgramFacts(
    file="model.onnx", window=64, vocabulary=100, bos=None, eos=1, ends=(1,)
).to_json()


@given(FACTS)
def test_what_was_written_is_read(facts: ProgramFacts) -> None:
    assert ProgramFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


@pytest.mark.parametrize(
    "change",
    [
        {"window": 0},
        {"window": True},
        {"vocabulary": 0},
        {"vocabulary": None},
        {"bos": 100},
        {"eos": -1},
        {"ends": [100]},
        {"ends": None},
        {"ends": [1] * 65},
        {"file": 3},
        {"kv_cache": None},
        {"quantization": []},
        {"more": 1},
    ],
)
def test_anything_else_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(AdapterCorrupt):
        ProgramFacts.from_json({**GOOD, **change})


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5))
def test_what_is_no_record_is_refused(found: object) -> None:
    with pytest.raises(AdapterCorrupt):
        ProgramFacts.from_json(found)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{" * 9, '{"format": []}'])
def test_a_folder_with_a_damaged_record_is_for_no_runtime(tmp_path: Path, text: str) -> None:
    (tmp_path / EXPORT).write_text(text)
    with pytest.raises((AdapterCorrupt, UsageError)):
        runtime_of(tmp_path)


def test_an_export_for_another_runtime_says_so(tmp_path: Path) -> None:
    (tmp_path / EXPORT).write_text('{"format": "executorch"}')
    with pytest.raises(UsageError, match="'executorch', by which nothing"):
        runtime_of(tmp_path)
    (tmp_path / EXPORT).write_text('{"format": "merged"}')
    assert runtime_of(tmp_path) == "torch"


def test_an_export_without_the_base_says_how_to_get_it(tmp_path: Path) -> None:
    record = {"schema": 1, "format": "gguf", "files": [], "base_digest": "0" * 64}
    (tmp_path / EXPORT).write_text(json.dumps(record))
    with pytest.raises(UsageError, match="without the base") as found:
        open_program(tmp_path, trusted=None)
    assert "--graph" in found.value.hint
    for change in ({"program": GOOD}, {"program": GOOD, "base_digest": None}):
        (tmp_path / EXPORT).write_text(json.dumps({**record, **change}))
        with pytest.raises(AdapterCorrupt):
            open_program(tmp_path, trusted=None)
