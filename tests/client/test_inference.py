"""Answers on the device: with the newest adapter that verifies, and without a network."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.adapter import adapt
from client.adapterrules import AdapterPolicy
from client.adapterspec import adapter_spec
from client.adapterstore import AdapterStore
from client.generation import Answer
from client.home import DeviceHome, NodeConfig
from client.inference import LocalModel, base_folder, load
from client.model import load_base
from client.policyfile import TEMPLATE
from server.adapters import write_adapter
from server.registry import AdapterRegistry, AdapterVersion
from shared.errors import (
    AdapterCorrupt,
    AdapterUntrusted,
    ConfigError,
    FleetError,
    InvalidValue,
    ModelNotFound,
)
from shared.lora import Factors
from shared.manifest import WEIGHTS
from shared.mixture import Mixture
from tests.adapterkit import SIGNER, files_of, open_registry, report_about
from tests.client.conftest import MakeFolder

ROOT = Path(__file__).parents[2]
PROMPT = "w1 w2 w3"


class Device:
    """An enrolled device with adapters of a tiny base model, one more biased than the other."""

    def __init__(self, folder: Path, base: Path, *, versions: int = 2) -> None:
        loaded = load_base(str(base))
        spec = adapter_spec(loaded, r=2, alpha=4.0, target_modules=["q_proj", "v_proj"])
        self.base = base
        self.registry: AdapterRegistry = open_registry(folder / "registry")
        self.factors: dict[str, Factors] = {}
        self.versions: list[AdapterVersion] = []
        for seed in range(1, versions + 1):
            rng = np.random.default_rng(seed)
            factors: Factors = {
                f.name: rng.standard_normal(f.shape).astype(np.float32) for f in spec.factors
            }
            version = self._add(folder / f"adapter-{seed}", spec, factors, loaded.digest)
            self.versions.append(version)
            self.factors[version.digest] = factors
        config = NodeConfig(
            name="clinic-7",
            fleet="127.0.0.1:9092",
            control="127.0.0.1:9093",
            base=str(base),
            adapter_key=SIGNER.public_key,
        )
        self.home = DeviceHome.create(folder / "home", config)
        self.store = AdapterStore(
            self.home.adapters, trusted_key=SIGNER.public_key, base_digest=loaded.digest
        )
        for version in self.versions:
            self.store.install(
                version.manifest_bytes, version.signature, files_of(self.registry, version)
            )

    def _add(self, folder: Path, spec: Any, factors: Factors, base: str) -> AdapterVersion:
        from server.adapters import write_adapter

        weights = write_adapter(
            folder, spec=spec, factors=factors, base_model="tiny", dropout=0.0, manifest={}
        )
        return self.registry.add(folder, name="tiny", base_digest=base, audit=report_about(weights))

    def path(self, version: AdapterVersion, name: str) -> Path:
        return self.home.adapters / "versions" / version.digest / name


@pytest.fixture
def device(tmp_path: Path, model_folder: MakeFolder) -> Device:
    return Device(tmp_path, model_folder("llama"))


def truth(base: Path, factors: Factors | None, tokens: int) -> list[int]:
    """Return the likeliest continuation by PEFT and transformers' own generate."""
    model = load_base(str(base))
    module: Any = model.model
    if factors is not None:
        adapted = adapt(model, r=2, alpha=4.0, target_modules=["q_proj", "v_proj"])
        adapted.load(factors)
        module = adapted.peft_model
    ids = model.tokenizer(PROMPT, add_special_tokens=False, return_tensors="pt")["input_ids"]
    out = module.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
    )
    return [int(token) for token in out[0, ids.shape[1] :]]


def words(answer: Answer) -> list[str]:
    return answer.text.split()


def names(base: Path, ids: list[int]) -> list[str]:
    tokenizer = load_base(str(base)).tokenizer
    kept = ids[: ids.index(1)] if 1 in ids else ids
    return [str(tokenizer.convert_ids_to_tokens(token)) for token in kept]


def test_the_answer_is_that_of_the_newest_adapter(device: Device) -> None:
    model = LocalModel.load(device.home)
    newest = device.versions[-1]
    assert model.adapter is not None
    assert model.adapter.digest == newest.digest
    assert model.warnings == ()
    expected = truth(device.base, device.factors[newest.digest], 12)
    assert words(model.generate(PROMPT, max_tokens=12)) == names(device.base, expected)
    older = truth(device.base, device.factors[device.versions[0].digest], 12)
    assert expected != older != truth(device.base, None, 12)


def test_without_an_adapter_the_base_answers_only_if_asked(
    tmp_path: Path, model_folder: MakeFolder
) -> None:
    device = Device(tmp_path, model_folder("llama"), versions=0)
    with pytest.raises(AdapterUntrusted, match="No adapter is installed"):
        load(device.home)
    model = load(device.home, base_only=True)
    assert model.adapter is None
    expected = names(device.base, truth(device.base, None, 10))
    assert words(model.generate(PROMPT, max_tokens=10)) == expected


@pytest.mark.parametrize("name", [WEIGHTS, "manifest.json", "signature.json", "audit.json"])
def test_a_refused_adapter_is_named_and_the_one_before_it_answers(
    device: Device, name: str
) -> None:
    path = device.path(device.versions[1], name)
    path.write_bytes(path.read_bytes()[:-9] + b"tampered}")
    said: list[str] = []
    model = LocalModel.load(device.home, warn=said.append)
    older, newest = device.versions
    assert model.adapter is not None
    assert model.adapter.digest == older.digest
    assert newest.digest[:12] in said[0]
    assert "is not used [adapter-" in said[0]
    assert said[1] == f"Going on with the adapter before it, {older.digest[:12]}."
    assert model.warnings == tuple(said)
    expected = names(device.base, truth(device.base, device.factors[older.digest], 8))
    assert words(model.generate(PROMPT, max_tokens=8)) == expected


def test_warnings_go_to_the_log_by_default(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.path(device.versions[1], WEIGHTS).unlink()
    LocalModel.load(device.home)
    assert "is not used" in caplog.text
    assert PROMPT not in caplog.text


def test_if_none_verifies_nothing_answers(device: Device) -> None:
    for version in device.versions:
        device.path(version, WEIGHTS).write_bytes(b"")
    with pytest.raises(AdapterUntrusted, match="None of 2 installed adapters") as found:
        LocalModel.load(device.home, warn=lambda note: None)
    assert "--base-only" in found.value.hint
    assert LocalModel.load(device.home, base_only=True).adapter is None


def test_the_owners_rules_hold_for_what_is_installed_already(device: Device) -> None:
    policy = AdapterPolicy(verdicts=frozenset({"inconclusive"}))
    with pytest.raises(AdapterUntrusted, match="audit verdict=consistent"):
        LocalModel.load(device.home, policy=policy, warn=lambda note: None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('verdicts = ["inconclusive"]', "audit verdict=consistent"),
        (f'audit_key = "{"0" * 64}"', "not signed with the key"),
    ],
)
def test_the_policy_file_says_which_adapters_are_used(
    device: Device, line: str, reason: str
) -> None:
    """The rest of the file need not be filled in to use an adapter."""
    device.home.policy.write_text(TEMPLATE, encoding="utf-8")
    assert LocalModel.load(device.home).adapter is not None
    device.home.policy.write_text(f"{TEMPLATE}\n[adapters]\n{line}\n", encoding="utf-8")
    with pytest.raises(AdapterUntrusted, match=reason):
        LocalModel.load(device.home, warn=lambda note: None)


def test_a_damaged_policy_file_lets_no_adapter_through(device: Device) -> None:
    for text, found in (
        ("[adapters", "not valid TOML"),
        ('[adapters]\nverdicts = ["violation"]', r"adapters\.verdicts"),
        ("[adapters]\nunaudited = 1", r"adapters\.unaudited"),
        ("[adapters]\nmax_megabytes = 0", r"adapters\.max_megabytes"),
        ("[adapters]\nunaudted = true", r"adapters\.unaudted: unknown key"),
        ("adapters = 3", "adapters"),
    ):
        device.home.policy.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=found):
            LocalModel.load(device.home)


def test_an_adapter_of_another_base_is_refused(device: Device, model_folder: MakeFolder) -> None:
    other = model_folder("llama", num_hidden_layers=1)
    with pytest.raises(AdapterUntrusted, match="base="):
        LocalModel.load(device.home, base=other, warn=lambda note: None)
    # Also by a store that does not know the base.
    store = AdapterStore(device.home.adapters, trusted_key=SIGNER.public_key, base_digest=None)
    with pytest.raises(AdapterUntrusted, match="another base"):
        LocalModel.load(base=other, store=store, warn=lambda note: None)


def test_a_device_without_a_pinned_key_loads_no_adapter(device: Device) -> None:
    config = device.home.config.model_copy(update={"adapter_key": None})
    with pytest.raises(AdapterUntrusted, match="no key"):
        LocalModel.load(DeviceHome(path=device.home.path, config=config))


def test_nothing_is_fetched(tmp_path: Path) -> None:
    for name in ("owner/name", "gpt2", "./nothing"):
        with pytest.raises(ModelNotFound, match="no folder on this device"):
            base_folder(name)
    assert (base_folder("demo") / "model.safetensors").exists()
    with pytest.raises(FleetError, match="no enrolled device"):
        LocalModel.load(tmp_path)


def test_a_query_needs_no_socket(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        pytest.fail("a socket was asked for")

    monkeypatch.setattr(socket.socket, "__init__", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    model = LocalModel.load(device.home)
    assert model.generate(PROMPT, max_tokens=5).tokens > 0


@pytest.mark.slow
def test_a_whole_process_that_may_not_open_sockets_answers(device: Device) -> None:
    """The interpreter itself refuses, and tells of every attempt, also inside libraries."""
    code = f"""
import sys
def hook(event, arguments):
    if event.startswith("socket.") or event in {{"urllib.Request", "subprocess.Popen"}}:
        raise RuntimeError(event)
sys.addaudithook(hook)
from pathlib import Path
from client.inference import LocalModel
model = LocalModel.load(Path({str(device.home.path)!r}))
print(model.generate({PROMPT!r}, max_tokens=5).text)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = LocalModel.load(device.home).generate(PROMPT, max_tokens=5).text
    assert done.stdout == expected + "\n"


def test_the_pieces_of_a_stream_are_the_answer(device: Device) -> None:
    model = LocalModel.load(device.home)
    for temperature in (0.0, 0.8):
        heard: list[str] = []
        options: dict[str, Any] = {"max_tokens": 9, "temperature": temperature, "seed": 4}
        answer = model.generate(PROMPT, **options, on_text=heard.append)
        assert "".join(heard) == answer.text == "".join(model.stream(PROMPT, **options))
        assert len(heard) > 1


def test_draws_follow_the_seed_and_otherwise_differ(device: Device) -> None:
    model = LocalModel.load(device.home)

    def say(seed: int | None) -> str:
        return model.generate(PROMPT, max_tokens=20, temperature=2.0, seed=seed).text

    assert say(1) == say(1)
    assert len({say(None) for _ in range(4)}) > 1  # alike with a chance below 1e-9
    assert len({say(seed) for seed in range(4)}) > 1
    top = model.generate(PROMPT, max_tokens=8, temperature=3.0, top_k=1).text
    assert top == model.generate(PROMPT, max_tokens=8).text


def test_a_full_window_ends_the_answer_and_a_longer_prompt_is_refused(device: Device) -> None:
    model = LocalModel.load(device.home, base_only=True)
    answer = model.generate("w1 " * 60, max_tokens=100)
    assert answer.prompt_tokens + answer.tokens <= 64
    if answer.tokens == 64 - answer.prompt_tokens:
        assert answer.ended == "window"
    for count in (64, 1000):
        with pytest.raises(InvalidValue, match="expected fewer than 64"):
            model.generate("w1 " * count)
    assert model.generate("", max_tokens=2).prompt_tokens == 1


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"max_tokens": True},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"seed": -1},
        {"seed": 1 << 63},
    ],
)
def test_numbers_out_of_range_are_refused(device: Device, options: dict[str, Any]) -> None:
    model = LocalModel.load(device.home, base_only=True)
    with pytest.raises(InvalidValue):
        model.generate(PROMPT, **options)
    with pytest.raises(InvalidValue):
        model.stream(PROMPT, **options)


def test_markers_in_a_prompt_are_text(device: Device) -> None:
    model = LocalModel.load(device.home, base_only=True)
    literal = model.generate("w1 </s> w2", max_tokens=1).prompt_tokens
    assert literal > model.generate("w1 w2", max_tokens=1).prompt_tokens + 1


def test_an_adapter_that_diverged_says_so(device: Device) -> None:
    model = LocalModel.load(device.home)
    assert model.adapted is not None
    with torch.no_grad():
        for _, parameter in model.adapted.trainable:
            parameter.fill_(1e30)
    with pytest.raises(AdapterCorrupt, match="not finite"):
        model.generate(PROMPT)


def test_the_store_remembers_nothing_of_a_query(device: Device) -> None:
    before = {p: p.read_bytes() for p in device.home.path.rglob("*") if p.is_file()}
    LocalModel.load(device.home).generate(PROMPT, max_tokens=5)
    assert {p: p.read_bytes() for p in device.home.path.rglob("*") if p.is_file()} == before
    assert json.loads((device.home.adapters / "state.json").read_text())["refusals"] == []


def test_a_mixture_is_verified_loaded_and_answers_with_its_gates(
    tmp_path: Path, model_folder: MakeFolder
) -> None:
    """From safetensors and JSON alone; the truth is a whole pass for each token, no cache."""
    base = model_folder("llama")
    loaded = load_base(str(base))
    said = {"r": 4, "alpha": 4.0, "target_modules": ["q_proj", "v_proj"]}
    mixture = Mixture(adapters=2, sharpness=4.0)
    spec = adapter_spec(loaded, **said, mixture=mixture)  # type: ignore[arg-type]
    rng = np.random.default_rng(5)
    factors: Factors = {
        f.name: rng.standard_normal(f.shape).astype(np.float32) for f in spec.factors
    }
    weights = write_adapter(
        tmp_path / "adapter",
        spec=spec,
        factors=factors,
        base_model="tiny",
        dropout=0.0,
        manifest={},
    )
    registry = open_registry(tmp_path / "registry")
    version = registry.add(
        tmp_path / "adapter", name="tiny", base_digest=loaded.digest, audit=report_about(weights)
    )
    store = AdapterStore(
        tmp_path / "store", trusted_key=SIGNER.public_key, base_digest=loaded.digest
    )
    store.install(version.manifest_bytes, version.signature, files_of(registry, version))
    model = LocalModel.load(base=base, store=store)
    assert model.warnings == ()
    answer = model.generate(PROMPT, max_tokens=10)
    adapted = adapt(loaded, **said, mixture=mixture)  # type: ignore[arg-type]
    adapted.load(factors)
    ids = loaded.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    written: list[int] = []
    with torch.no_grad():
        for _ in range(10):
            logits = adapted.peft_model(input_ids=torch.tensor([ids + written]), use_cache=False)
            written.append(int(logits.logits[0, -1].argmax()))
    expected = names(base, written)
    assert words(answer) == expected
