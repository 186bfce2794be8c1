"""A device that holds an exported step: it fetches, and says what it needs to answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.basedigest import base_digest
from client.home import DeviceHome, NodeConfig
from client.inference import LocalModel, device_base_digest
from client.personalise import personalise
from shared.errors import BaseModelMismatch, UsageError
from tests.adapterkit import SIGNER
from tests.client.answering.conftest import Field
from tests.client.edge.conftest import MakeStep, make_step

__all__ = ["make_step"]

pytestmark = pytest.mark.slow


def enrolled(folder: Path, step: Path, digest: str, **more: object) -> DeviceHome:
    said: dict[str, object] = {
        "name": "phone-1",
        "fleet": "127.0.0.1:9092",
        "control": "127.0.0.1:9093",
        "base": str(step),
        "runtime": "onnx",
        "step": digest,
        "adapter_key": SIGNER.public_key,
        **more,
    }
    return DeviceHome.create(folder, NodeConfig.of(said))


def test_a_step_names_the_base_that_adapters_are_for(
    tmp_path: Path,
    make_step: MakeStep,
) -> None:
    step = make_step("llama")
    home = enrolled(tmp_path / "home", step.folder, step.exported.manifest.digest)
    assert device_base_digest(home) == base_digest(step.base)
    other = enrolled(tmp_path / "other", step.folder, "0" * 64)
    with pytest.raises(BaseModelMismatch):
        device_base_digest(other)
    with pytest.raises(UsageError, match="cannot answer") as found:
        LocalModel.load(home)
    assert "answers" in found.value.hint
    (tmp_path / "data.jsonl").write_text('{"text": "w1"}\n')
    owner = enrolled(tmp_path / "owner", step.folder, "0" * 64, data=str(tmp_path / "data.jsonl"))
    with pytest.raises(UsageError, match="need torch"):
        personalise(owner)


def test_it_answers_by_the_export_that_its_owner_names(field: Field, tmp_path: Path) -> None:
    """The adapters folder is that of a device that fetched; the step itself is not looked at."""
    home = enrolled(tmp_path / "home", tmp_path, "0" * 64, answers=str(field.export("onnx")))
    home.adapters.rmdir()
    field.home.adapters.rename(home.adapters)
    try:
        model = LocalModel.load(home)
        assert (model.runtime, model.warnings) == ("onnx", ())
        found = model.generate("The king", max_tokens=6)
    finally:
        home.adapters.rename(field.home.adapters)
    assert found == LocalModel.load(field.home).generate("The king", max_tokens=6)
