"""Files of attacks and prompts: shapes, refusals that quote nothing, and the licensed sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.audit.promptleak import sets
from server.audit.promptleak.sets import load_attacks, load_prompts
from shared.errors import DataFileNotFound, MalformedRow, NoUsableText

DATA = Path(__file__).parents[5] / "shared" / "data" / "audit"


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_prompts_of_every_shape(tmp_path: Path) -> None:
    lines = [
        {"act": "x", "prompt": "First prompt."},
        {"instruction": "Second prompt.", "id": 4},
        "Third prompt.",
        {"system": "Fourth, code 99.", "secret": "99"},
        {"prompt": "First  prompt."},
        {"prompt": "  "},
    ]
    rows = "\n".join(json.dumps(line) for line in lines) + "\n\n"
    found = load_prompts(write(tmp_path / "a.jsonl", rows))
    assert [(p.text, p.secret) for p in found] == [
        ("First prompt.", ""),
        ("Second prompt.", ""),
        ("Third prompt.", ""),
        ("Fourth, code 99.", "99"),
    ]
    as_json = load_prompts(write(tmp_path / "a.json", json.dumps({"prompts": lines})))
    assert as_json == found


def test_text_files_are_lines_or_paragraphs(tmp_path: Path) -> None:
    lines = load_prompts(write(tmp_path / "lines.txt", "\ufeffOne.\nTwo.\n\n"))
    assert [p.text for p in lines] == ["One.", "Two."]
    blocks = load_prompts(write(tmp_path / "blocks.txt", "One,\nstill one.\n \nTwo.\n"))
    assert [p.text for p in blocks] == ["One,\nstill one.", "Two."]


def test_attacks_of_every_shape(tmp_path: Path) -> None:
    data = [
        "Say it.",
        ["Hello.", "And now say it."],
        {"attack": "Spell it.", "category": "Odd_Ways", "decoder": "spaced"},
        {"turns": ["One.", "Two."], "family": "what a wording!", "decoder": "unheard"},
        "Say it.",
    ]
    found = load_attacks(write(tmp_path / "a.json", json.dumps(data)))
    assert [(a.id, a.family, a.turns, a.decoder) for a in found] == [
        ("given-1", "given", ("Say it.",), ""),
        ("given-2", "given", ("Hello.", "And now say it."), ""),
        ("given-3", "odd-ways", ("Spell it.",), "spaced"),
        ("given-4", "given", ("One.", "Two."), ""),
    ]


def test_attacks_by_family(tmp_path: Path) -> None:
    data = {"base64": ["Encode it.", {"text": "Code it."}], "plain": "Say it."}
    found = load_attacks(write(tmp_path / "a.json", json.dumps(data)))
    assert [(a.family, a.turns) for a in found] == [
        ("base64", ("Encode it.",)),
        ("base64", ("Code it.",)),
        ("plain", ("Say it.",)),
    ]


@pytest.mark.parametrize(
    ("name", "content", "row"),
    [
        ("bad.jsonl", '"fine text"\n{"prompt": "zqx"', 2),
        ("bad.jsonl", '{"zqx": "zqx"}', 1),
        ("bad.jsonl", '{"prompt": 4, "note": "zqx"}', 1),
        ("bad.jsonl", '{"prompt": "zqx", "secret": "zqz"}', 1),
        ("bad.json", "zqx", 1),
        ("bad.json", '"zqx"', 1),
        ("bad.json", "[" * 100_000, 1),
    ],
)
def test_a_bad_row_is_named_and_not_quoted(
    tmp_path: Path, name: str, content: str, row: int
) -> None:
    with pytest.raises(MalformedRow, match=f"row {row},") as caught:
        load_prompts(write(tmp_path / name, content))
    assert "zqx" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_bad_attacks_are_refused(tmp_path: Path) -> None:
    for row in ("[]", "[1]", '{"turns": "", "x": 1}', '[["a", 2]]', "[{}]"):
        with pytest.raises((MalformedRow, NoUsableText)):
            load_attacks(write(tmp_path / "bad.json", row))


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataFileNotFound, match=r"'none.txt' cannot be read") as caught:
        load_prompts(tmp_path / "none.txt")
    assert str(tmp_path) not in str(caught.value)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait, please")
    with pytest.raises(DataFileNotFound, match="not UTF-8"):
        load_prompts(tmp_path / "latin.txt")
    with pytest.raises(NoUsableText, match="no system prompts"):
        load_prompts(write(tmp_path / "empty.txt", "\n\n"))
    with pytest.raises(NoUsableText, match="no attacks"):
        load_attacks(write(tmp_path / "empty.json", '["", " "]'))
    monkeypatch.setattr(sets, "MAX_ROWS", 2)
    with pytest.raises(DataFileNotFound, match="more than 2 rows"):
        load_prompts(write(tmp_path / "long.txt", "a\nb\nc"))
    monkeypatch.setattr(sets, "MAX_BYTES", 2)
    with pytest.raises(DataFileNotFound, match="has 5 bytes"):
        load_prompts(write(tmp_path / "long.txt", "a\nb\nc"))


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/audit beside the repository")
def test_the_licensed_sets_are_read_where_they_are() -> None:
    assert len(load_attacks(DATA / "prompt_extraction" / "attacks_selected.json")) == 15
    generated = load_attacks(DATA / "prompt_extraction" / "attacks_generated.json")
    assert 100 <= len(generated) <= 105
    assert len(load_prompts(DATA / "prompt_extraction" / "data_unnatural-test.jsonl")) > 400
    assert len(load_prompts(DATA / "prompt_extraction" / "data_dev.jsonl")) > 300
    assert len(load_prompts(DATA / "system_prompts" / "prompts.jsonl")) > 450
