"""Public text: what it is taken from, that held-out text is, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from client.model import load_base
from shared.errors import DataFileNotFound, NoUsableText
from simulations.compress.text import generated_text, text_of_file
from simulations.pretrain import DEMO_FOLDER


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_base(str(DEMO_FOLDER)).tokenizer


def test_rows_are_a_function_of_text_use_and_index(tokenizer: PreTrainedTokenizerBase) -> None:
    one, two = generated_text(1), generated_text(2)
    rows = one.rows(tokenizer, "calibration", count=3, length=40)
    assert rows.shape == (3, 40)
    assert rows.dtype == torch.int64
    assert torch.equal(rows, generated_text(1).rows(tokenizer, "calibration", count=3, length=40))
    assert one.digest != two.digest
    others = [
        one.rows(tokenizer, "holdout", count=3, length=40),
        one.rows(tokenizer, "calibration", count=3, length=40, index=1),
        two.rows(tokenizer, "calibration", count=3, length=40),
    ]
    assert not any(torch.equal(rows, other) for other in others)


def test_the_last_tenth_of_a_file_is_held_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = tmp_path / "public.txt"
    path.write_text("".join(f"seen {i}\n\n" for i in range(18)) + "hidden 1\nhidden 2\n")
    text = text_of_file(path, 0)
    assert (text.name, text.digest) == ("public.txt", hashlib.sha256(path.read_bytes()).hexdigest())
    for use, mine in (("calibration", "seen"), ("training", "seen"), ("holdout", "hidden")):
        rows = text.rows(tokenizer, use, count=2, length=64, index=3)
        said = tokenizer.decode(rows.flatten().tolist(), skip_special_tokens=True)
        assert mine in said
        assert {"seen": "hidden", "hidden": "seen"}[mine] not in said


def test_what_is_no_public_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFileNotFound, match="is no file"):
        text_of_file(tmp_path / "none.txt", 0)
    path = tmp_path / "bad.txt"
    for data in (b"", b"one line\n", b"\xff\xfe\n\xff\n"):
        path.write_bytes(data)
        with pytest.raises(NoUsableText, match="usable lines"):
            text_of_file(path, 0)
