"""A device that holds an exported step: it fetches, and says what it needs to answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.basedigest import base_digest
from client.inference import LocalModel, device_base_digest
from client.personalise import personalise
from shared.errors import BaseModelMismatch, UsageError
from tests.client.answering.conftest import enrolled
from tests.client.edge.conftest import MakeStep, make_step

__all__ = ["make_step"]

pytestmark = pytest.mark.slow


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
