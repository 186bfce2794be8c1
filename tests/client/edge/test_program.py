"""A manifest says exactly what a step is, and a changed byte of a step is noticed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.edge.engine import OnnxStep
from client.edge.program import LARGEST_MANIFEST, MANIFEST, StepManifest, load_step, parse_manifest
from shared.canonical import canonical_json, sha256_hex
from shared.errors import BaseModelMismatch, ModelNotFound
from tests.client.edge.conftest import MakeStep
from tests.client.edge.test_training import manifest

digests = st.text("0123456789abcdef", min_size=64, max_size=64)


@st.composite
def manifests(draw: st.DrawFn) -> StepManifest:
    vocabulary = draw(st.integers(1, 2**31))
    ids = st.none() | st.integers(0, vocabulary - 1)
    return replace(
        manifest(),
        quantization=draw(st.sampled_from(["none", "int8", "int4"])),
        length=draw(st.integers(2, 65536)),
        max_grad_norm=draw(st.none() | st.floats(1e-6, 1e6)),
        trained=draw(st.sampled_from(["A", "B", "AB"])),
        vocabulary=vocabulary,
        bos=draw(ids),
        eos=draw(ids),
        base_digest=draw(digests),
        deviation=draw(st.floats(0, 1)),
    )


def written(value: object) -> bytes:
    return canonical_json(value).encode()


@given(manifests())
def test_a_manifest_is_read_back(found: StepManifest) -> None:
    data = written(found.to_json())
    assert parse_manifest(data) == found
    assert found.digest == sha256_hex(data)


def _changed(**changes: object) -> dict[str, Any]:
    return {**manifest().to_json(), **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"runtime": "executorch2"},
        {"runtime": "executorch"},  # whose files have other names
        {"quantization": "int2"},
        {"length": 1},
        {"length": True},
        {"length": 8.0},
        {"length": "8"},
        {"max_grad_norm": 0},
        {"max_grad_norm": -1.0},
        {"max_grad_norm": True},
        {"trained": "BA"},
        {"trained": ""},
        {"vocabulary": 0},
        {"eos": 50},
        {"bos": -1},
        {"base_digest": "A" * 64},
        {"base_digest": None},
        {"deviation": -1.0},
        {"files": []},
        {"files": [["../base.bin", 1, "0" * 64]]},
        {"files": [["base.bin", 1, "0" * 64]] * 3},
        {"files": [["base.bin", -1, "0" * 64]]},
        {"files": [["base.bin", 1]]},
        {"files": None},
        {"adapter": {}},
        {"adapter": None},
        {"schema": 2},
        {"more": 1},
    ],
)
def test_a_manifest_with_anything_else_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BaseModelMismatch):
        parse_manifest(written(_changed(**changes)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b"{" * 5000,
        b'{"schema":1}',
        json.dumps(manifest().to_json(), indent=1).encode(),
        b" " * (LARGEST_MANIFEST + 1),
        written(_changed(max_grad_norm=None)).replace(
            b'"max_grad_norm":null', b'"max_grad_norm":NaN'
        ),
    ],
)
def test_what_is_no_canonical_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(BaseModelMismatch):
        parse_manifest(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_one_error(data: bytes) -> None:
    with pytest.raises(BaseModelMismatch):
        parse_manifest(data)


@pytest.mark.slow
def test_a_changed_file_is_not_used(make_step: MakeStep, tmp_path: Path) -> None:
    step = make_step("gpt2")
    digest = step.exported.manifest.digest
    assert load_step(step.folder, digest=digest) == step.exported.manifest
    with pytest.raises(BaseModelMismatch, match="expected 000000000000"):
        load_step(step.folder, digest="0" * 64)
    for name in ("step.onnx", "base.bin", "tokenizer.json", MANIFEST):
        folder = tmp_path / name
        shutil.copytree(step.folder, folder)
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        with pytest.raises(BaseModelMismatch):
            load_step(folder, digest=digest)
        (folder / name).unlink()
        with pytest.raises(ModelNotFound, match=name):
            load_step(folder)
        (folder / name).symlink_to(step.folder / name)
        with pytest.raises(ModelNotFound, match=name):
            load_step(folder)
    with pytest.raises(ModelNotFound):
        load_step(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_program_that_is_not_what_its_manifest_says_is_refused(
    make_step: MakeStep, tmp_path: Path
) -> None:
    step = make_step("gpt2")
    found = step.exported.manifest
    for other in (replace(found, length=8), replace(found, trained="B")):
        with pytest.raises(BaseModelMismatch, match="takes or gives"):
            OnnxStep(step.folder, other)
    (tmp_path / "step.onnx").write_bytes(b"no program")
    with pytest.raises(BaseModelMismatch, match="cannot run"):
        OnnxStep(tmp_path, found)
    with pytest.raises(BaseModelMismatch, match="cannot run"):
        OnnxStep(tmp_path / "nowhere", found)
