"""Gradient inversion on real models, against updates that the client's real steps made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.adapter import AdaptedModel, adapt
from client.clipping import MicrobatchClipper
from client.data import ClientData, Record
from client.losses import collate
from client.model import load_base
from client.runtime import ClientRuntime
from client.training import Example, TrainSettings, train_plain
from server.audit.inversion import Inversion
from server.audit.protocol import AuditContext, Claim
from shared.configfile import resolve
from shared.errors import AuditError
from shared.lora import initial_factors
from shared.scenarioplan import plan_of
from simulations.auditing.inverter import RuntimeInverter
from simulations.auditing.onestep import OneStep
from simulations.auditing.rowspaces import fed_by_tokens, row_spaces
from simulations.auditing.searchsettings import SearchSettings
from simulations.auditing.textsearch import TextSearch
from tests.client.conftest import VOCABULARY, save_model
from tests.server.audit.oracles import leaked, run

QUICK = SearchSettings(beams=4, width=16, polished=1, passes=2, pool=48)
TABLES: dict[str, dict[str, object]] = {
    "run": {"name": "inversion", "rounds": 3, "seed": 5},
    "model": {"base": "demo"},
    "lora": {"r": 8},
    "data": {"path": "builtin:clinics", "max_length": 48},
    "clients": {
        "population": 12,
        "cohort": 6.0,
        "local_steps": 1,
        "batch_size": 1,
        "learning_rate": 0.5,
    },
    "privacy": {
        "mode": "client-central",
        "neighboring_relation": "add-or-remove-one",
        "noise_multiplier": 1.0,
        "delta": 1e-3,
        "clipping_norm": 0.1,
        "max_grad_norm": 0.5,
        "sampling_probability": 1.0,
        "noise_source": "seeded-simulation",
    },
    "aggregation": {"policy": "fedavg"},
    "performance": {"threads": 1},
}
DISTRIBUTED = (
    "privacy.mode=client-distributed",
    "privacy.honest_fraction=0.9",
    "privacy.survivor_fraction=0.7",
    "privacy.min_cohort=5",
)


class Words:
    """Clients with texts of random words of the tiny tokenizer."""

    def client(self, index: int) -> ClientData:
        rng = np.random.default_rng(index)
        records = [
            Record(text=" ".join(f"w{word}" for word in rng.choice(VOCABULARY - 3, 9)))
            for _ in range(4)
        ]
        return ClientData(name=f"client {index}", train=records, holdout=[])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("wide") / "llama", "llama", hidden_size=64)


def adapted(folder: Path, *, r: int = 8, kinds: str = "AB") -> AdaptedModel:
    """A tiny Llama whose B is not zero."""
    model = adapt(load_base(str(folder)), r=r, alpha=8, target_modules=["q_proj", "v_proj"])
    model.load(initial_factors(model.spec, 5))
    rng = np.random.default_rng(3)
    model.load_vector(0.05 * rng.standard_normal(model.spec.size("B")).astype(np.float32), "B")
    model.set_trainable(kinds)
    return model


def texts(count: int, length: int, *, seed: int = 0) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(int(i) for i in rng.integers(3, VOCABULARY, length)) for _ in range(count)]


def gradient(model: AdaptedModel, rows: Sequence[tuple[int, ...]]) -> Any:
    """One plain step by the client's code, undone."""
    examples = [Example(ids=np.array(row), labels=np.array(row)) for row in rows]
    before = model.read_vector(model.kinds)
    settings = TrainSettings(local_steps=1, batch_size=len(rows), learning_rate=1.0)
    train_plain(model, examples, settings, rng=np.random.default_rng(0))
    change = before - model.read_vector(model.kinds)
    model.load_vector(before, model.kinds)
    return change


def search(
    model: AdaptedModel,
    seen: Any,
    length: int,
    known: tuple[int, ...] = (),
    settings: SearchSettings = QUICK,
) -> TextSearch:
    return TextSearch(model, seen, length=length, known=known, never=(0, 2), settings=settings)


@pytest.mark.slow
def test_a_text_shorter_than_the_rows_comes_back_whole(folder: Path) -> None:
    model = adapted(folder)
    for row in texts(2, 8):
        assert search(model, gradient(model, [row]), 8).find(1) == [row]


def test_a_known_beginning_is_left_out(folder: Path) -> None:
    model = adapted(folder)
    row = (1, *texts(1, 6)[0])
    assert search(model, gradient(model, [row]), 7, known=(1,)).find(1) == [row[1:]]


@pytest.mark.slow
def test_two_texts_come_back_in_any_order(folder: Path) -> None:
    model = adapted(folder)
    rows = texts(2, 6, seed=4)
    assert sorted(search(model, gradient(model, rows), 6).find(2)) == sorted(rows)


@pytest.mark.slow
def test_b_alone_gives_short_texts_away(folder: Path) -> None:
    """Row spaces of B hold ``A x``, of which r - 1 = 7 can be told apart."""
    model = adapted(folder, kinds="B")
    for row in texts(2, 6, seed=2):
        found = search(model, gradient(model, [row]), 6, settings=SearchSettings()).find(1)
        assert found == [row]


def test_noise_hides_the_text(folder: Path) -> None:
    model = adapted(folder)
    row = texts(1, 8)[0]
    seen = gradient(model, [row])
    noise = np.random.default_rng(1).standard_normal(seen.size).astype(np.float32)
    noisy = seen + noise * 10 * np.linalg.norm(seen) / np.linalg.norm(noise)
    found = search(model, noisy, 8).find(1)[0]
    assert sum(a == b for a, b in zip(found, row, strict=True)) <= 2


def test_the_model_is_left_as_it_was(folder: Path) -> None:
    model = adapted(folder, kinds="B")
    before = model.factors()
    search(model, gradient(model, texts(1, 5)), 5).find(1)
    after = model.factors()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert all(layer.examples == 0 for layer in model.layers)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_nothing_to_invert_is_refused(folder: Path, value: float) -> None:
    model = adapted(folder)
    with pytest.raises(AuditError, match="zero or not finite"):
        search(model, np.full(model.spec.size("AB"), value, dtype=np.float32), 5)


def test_inputs_of_the_text_lie_in_the_row_spaces_and_others_do_not(folder: Path) -> None:
    """Oracle: the layers' inputs, written out with transformers' own hooks."""
    model = adapted(folder)
    row = torch.tensor(texts(1, 6))
    spaces = row_spaces(model, torch.from_numpy(gradient(model, texts(1, 6))))
    # q and v of a block are fed the same, so there is one space a block.
    assert len(spaces) == 2
    assert len(fed_by_tokens(model, {space.layer for space in spaces})) == 1
    modules = dict(model.peft_model.named_modules())
    for space in spaces:
        seen: list[torch.Tensor] = []
        handle = modules[space.layer].register_forward_pre_hook(
            lambda module, arguments, seen=seen: seen.append(arguments[0].detach())
        )
        with torch.no_grad():
            model.peft_model(input_ids=row)
            model.peft_model(input_ids=torch.tensor(texts(1, 6, seed=9)))
        handle.remove()
        assert float(space.misfit(seen[0])[0, :5].max()) < 1e-3
        assert float(space.misfit(seen[1]).min()) > 0.1


def test_rows_that_fill_their_space_say_nothing(folder: Path) -> None:
    model = adapted(folder, kinds="B", r=4)
    full = np.random.default_rng(0).standard_normal(model.spec.size("B")).astype(np.float32)
    assert row_spaces(model, torch.from_numpy(full)) == []


def runtime(folder: Path, *overrides: str) -> ClientRuntime:
    config = resolve(TABLES, overrides, source="test").config
    model = adapt(
        load_base(str(folder)),
        r=config.lora.r,
        alpha=config.lora.alpha,
        target_modules=["q_proj", "v_proj"],
    )
    return ClientRuntime(
        config=config, plan=plan_of(config, population=12), model=model, source=Words()
    )


def inverter(folder: Path, *overrides: str) -> RuntimeInverter:
    clients = runtime(folder, *overrides)
    factors = initial_factors(clients.model.spec, 5)
    rng = np.random.default_rng(3)
    for factor in clients.model.spec.of_kind("B"):
        factors[factor.name] = (0.05 * rng.standard_normal(factor.shape)).astype(np.float32)
    released = clients.model.spec.flatten(factors, clients.config.trained_kinds)
    return RuntimeInverter(
        clients, released=released, clients=range(8), tokens=7, together=3, settings=QUICK
    )


@pytest.mark.slow
def test_arms_follow_the_mode(folder: Path) -> None:
    every = ("plain", "clipped", "noised", "summed")
    expected = {
        ("privacy.mode=none",): (("plain", "summed"), "plain"),
        (): (every, "clipped"),
        ("privacy.mode=example",): (every, "noised"),
        DISTRIBUTED: (every, "summed"),
    }
    for overrides, (arms, sent) in expected.items():
        found = inverter(folder, *overrides)
        assert (found.arms, found.sent) == (arms, sent)
    assert (found.clients, found.largest_batch, found.together) == (4, 4, 3)


def test_stages_are_what_their_names_say(folder: Path) -> None:
    """Oracles: the norm, one text's gradient at a time, and plain addition."""
    one = OneStep(runtime(folder))
    model = one._model
    model.load_vector(np.full(model.spec.size("B"), 0.05, dtype=np.float32), "B")
    groups = [[text] for text in texts(3, 7)]
    made = one.makers()
    plain, clipped = made["plain"](groups, 0), made["clipped"](groups, 0)
    np.testing.assert_allclose(plain, -0.5 * gradient(model, groups[0]), atol=1e-6)
    assert float(np.linalg.norm(clipped)) == pytest.approx(0.1, rel=1e-4)
    assert float(clipped @ plain) == pytest.approx(0.1 * np.linalg.norm(plain), rel=1e-4)
    noise = made["noised"](groups, 0) - clipped
    assert float(noise.std()) == pytest.approx(0.1, rel=0.1)
    alone = [made["clipped"]([group], 0) for group in groups]
    np.testing.assert_allclose(made["summed"](groups, 0), np.sum(alone, axis=0), atol=1e-6)


def test_example_clips_each_text(folder: Path) -> None:
    one = OneStep(runtime(folder, "privacy.mode=example", "privacy.max_grad_norm=0.01"))
    model = one._model
    model.load_vector(np.full(model.spec.size("B"), 0.05, dtype=np.float32), "B")
    rows = texts(2, 7)
    clipped = one.makers()["clipped"]([rows], 0)
    examples = [Example(ids=np.array(row), labels=np.array(row)) for row in rows]
    with MicrobatchClipper(model) as engine:
        expected = engine.clipped_sum(collate(examples, 0), 0.01)
    flat = torch.cat([part.flatten() for part in expected]).numpy()
    np.testing.assert_allclose(clipped, -flat, atol=1e-6)
    noised = one.makers()["noised"]([rows], 0)
    assert np.linalg.norm(noised) > 10 * 0.01


@pytest.mark.slow
def test_a_distributed_sum_is_that_of_the_noised_shares(folder: Path) -> None:
    one = OneStep(runtime(folder, *DISTRIBUTED, "privacy.noise_multiplier=0.5"))
    groups = [[text] for text in texts(3, 7)]
    total = one.makers()["summed"](groups, 0)
    alone = np.sum([one.makers()["clipped"]([group], 0) for group in groups], axis=0)
    # Each of three adds a third of the variance: 0.5 times the clip in all.
    assert float((total - alone).std()) == pytest.approx(0.5 * 0.1, rel=0.1)


@pytest.mark.slow
def test_a_clipped_update_is_read_and_no_token_is_kept(folder: Path) -> None:
    claim = Claim(
        mode="client-central",
        epsilon=8.0,
        delta=1e-3,
        unit="client",
        neighboring_relation="add-or-remove-one",
    )
    found = inverter(folder)
    before = found._model.factors()
    finding = run(Inversion(), AuditContext(claim=claim, seed=0, artefacts=(found,)))
    after = found._model.factors()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert (finding.verdict, finding.positive_control) == ("inconclusive", True)
    results = {one["arm"]: one for one in finding.evidence["derived"]["results"]}
    assert results["clipped"]["rouge_1"] == results["plain"]["rouge_1"] > 0.9
    assert results["noised"]["rouge_1"] < 0.5
    assert leaked(finding, *(Words().client(0).train[0].text or "").split()) == []


def test_clients_of_a_run_are_those_with_enough_text(folder: Path) -> None:
    clients = runtime(folder)
    released = clients.model.read_vector("AB")
    found = RuntimeInverter.of_run(clients, released=released, population=12)
    assert (found.clients, found.largest_batch, found.tokens) == (6, 4, 8)
    assert found.evaluations == SearchSettings().evaluations(8)
