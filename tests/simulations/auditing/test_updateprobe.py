"""The span audit on real models: what a server reads off updates that the real client made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.adapter import adapt
from client.data import ClientData, Record
from client.model import load_base
from client.runtime import ClientRuntime
from server.audit.protocol import AuditContext, Claim, Finding
from server.audit.span import Sighting, Span
from server.audit.tokenscores import View, presence_auc, token_scores
from shared.configfile import resolve
from shared.errors import AuditError
from shared.lora import initial_factors
from shared.privacy.noise import NoiseSource
from shared.scenarioplan import plan_of
from simulations.auditing.updateprobe import RuntimeProbe
from tests.client.conftest import VOCABULARY, save_model
from tests.server.audit.oracles import leaked, run

WIDE = {"llama": {"hidden_size": 64}, "gpt2": {"n_embd": 64}, "gpt_neox": {"hidden_size": 64}}
TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "gpt_neox": ["query_key_value"],
}
TABLES: dict[str, dict[str, object]] = {
    "run": {"name": "span", "rounds": 3, "seed": 5},
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
        "clipping_norm": 1.0,
        "max_grad_norm": 0.5,
        "sampling_probability": 1.0,
        "noise_source": "seeded-simulation",
    },
    "aggregation": {"policy": "fedavg"},
    "performance": {"threads": 1},
}


class Words:
    """Clients whose texts are words of the tiny tokenizer; one end token comes on top.

    Args:
        words: in each text.
        texts: of each client.
    """

    def __init__(self, words: int, texts: int = 1) -> None:
        self.words, self.texts = words, texts

    def client(self, index: int) -> ClientData:
        rng = np.random.default_rng(index)
        records = [
            Record(
                text=" ".join(
                    f"w{word}" for word in rng.choice(VOCABULARY - 3, self.words, replace=False)
                )
            )
            for _ in range(self.texts)
        ]
        return ClientData(name=f"client {index}", train=records, holdout=[])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("wide")
    return {
        family: save_model(root / family, family, **changes) for family, changes in WIDE.items()
    }


def probe_of(
    folder: Path,
    *overrides: str,
    words: int = 6,
    texts: int = 1,
    started: bool = True,
    targets: Sequence[str] = (),
    clients: int = 8,
) -> RuntimeProbe:
    """A probe over clients with so many words, from an adapter whose B is not zero."""
    config = resolve(TABLES, overrides, source="test").config
    model = adapt(
        load_base(str(folder)),
        r=config.lora.r,
        alpha=config.lora.alpha,
        target_modules=list(targets or TARGETS[folder.name]),
    )
    runtime = ClientRuntime(
        config=config, plan=plan_of(config, population=12), model=model, source=Words(words, texts)
    )
    factors = initial_factors(model.spec, config.run.seed)
    rng = np.random.default_rng(3)
    for factor in model.spec.of_kind("B"):
        scale = 0.05 if started else 0.0
        factors[factor.name] = (scale * rng.standard_normal(factor.shape)).astype(np.float32)
    vector = model.spec.flatten(factors, config.trained_kinds)
    return RuntimeProbe(runtime, vector=vector, clients=range(clients), seed=1)


def mean_auc(probe: RuntimeProbe, count: int = 4) -> float:
    return float(np.mean([found(probe.sighting(number)) for number in range(count)]))


def found(seen: Sighting) -> float:
    return presence_auc(token_scores(seen), seen.present)


FAMILIES = sorted(WIDE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["ffa", "fedavg"])
def test_the_attack_works_on_made_up_texts(
    folders: dict[str, Path], family: str, policy: str
) -> None:
    probe = probe_of(folders[family], f"aggregation.policy={policy}")
    for number in range(4):
        control = probe.control(number)
        assert control.tokens == (8 if policy == "fedavg" else 7)
        assert int(control.present.sum()) == control.tokens
        assert found(control) >= 0.99


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_up_to_the_rank_are_read_off_a_clipped_update(
    folders: dict[str, Path], family: str
) -> None:
    """Six words and an end token, of which the last leaves no trace; r = 8."""
    probe = probe_of(folders[family])
    seen = probe.sighting(0)
    assert (seen.tokens, probe.stage, probe.factors) == (6, "clipped", "AB")
    tokenizer = probe._model.base.tokenizer
    text = Words(6).client(0).train[0].text or ""
    assert set(np.flatnonzero(seen.present)) == set(tokenizer(text)["input_ids"])
    assert mean_auc(probe) >= 0.999


def test_positions_matter_where_embeddings_know_them(folders: dict[str, Path]) -> None:
    assert probe_of(folders["gpt2"]).sighting(0).positions == 7
    assert probe_of(folders["llama"]).sighting(0).positions == 1
    assert probe_of(folders["gpt_neox"]).sighting(0).positions == 1


def test_inputs_are_the_normalised_embeddings(folders: dict[str, Path]) -> None:
    """Oracle: the norms written out."""
    llama = probe_of(folders["llama"])
    base: Any = llama._model.base.model
    x = base.model.embed_tokens.weight.detach().double()
    norm = base.model.layers[0].input_layernorm
    scale = torch.rsqrt(x.pow(2).mean(dim=1, keepdim=True) + norm.variance_epsilon)
    expected = (x * scale * norm.weight.double()).numpy()
    np.testing.assert_allclose(llama.sighting(0).views[0].inputs(0), expected, atol=1e-5)
    gpt2 = probe_of(folders["gpt2"])
    base = gpt2._model.base.model
    x = (base.transformer.wte.weight + base.transformer.wpe.weight[5]).detach().double()
    norm = base.transformer.h[0].ln_1
    spread = torch.sqrt(x.var(dim=1, unbiased=False, keepdim=True) + norm.eps)
    centred = (x - x.mean(dim=1, keepdim=True)) / spread
    expected = (centred * norm.weight.double() + norm.bias.double()).detach().numpy()
    np.testing.assert_allclose(gpt2.sighting(0).views[0].inputs(5), expected, atol=1e-5)


def test_a_parallel_block_shows_its_mlp_too(folders: dict[str, Path]) -> None:
    probe = probe_of(folders["gpt_neox"], targets=["query_key_value", "dense_h_to_4h"])
    assert len(probe.sighting(0).views) == 2
    assert mean_auc(probe) >= 0.999


def test_more_tokens_than_rows_hide_each_other(folders: dict[str, Path]) -> None:
    """Llama's three projections give 3 r rows; one projection of GPT-NeoX gives r."""
    values = [
        mean_auc(probe_of(folders["gpt_neox"], "lora.r=4", words=words)) for words in (4, 12, 24)
    ]
    assert values[0] >= 0.99
    assert values[0] > values[1] > values[2]


def test_frozen_a_hides_what_fedavg_shows(folders: dict[str, Path]) -> None:
    shown = mean_auc(probe_of(folders["llama"], words=20))
    hidden = probe_of(folders["llama"], "aggregation.policy=ffa", words=20)
    assert (hidden.factors, hidden.capacity) == ("B", 7)
    assert shown >= 0.99
    assert mean_auc(hidden) < shown - 0.1


def test_a_first_round_shows_tokens_through_b_alone(folders: dict[str, Path]) -> None:
    """B = 0 leaves A where it is; B's rows tell fewer than r tokens apart, and no more."""
    few = probe_of(folders["llama"], words=5, started=False)
    assert len(few.sighting(0).views) == 3
    assert mean_auc(few) >= 0.99
    many = probe_of(folders["llama"], words=30, started=False)
    assert mean_auc(many) < 0.85


@pytest.mark.parametrize(
    ("override", "least"),
    [("clients.local_steps=4", 0.999), ('clients.optimizer="adamw"', 0.9)],
)
def test_more_steps_and_adam_change_little(
    folders: dict[str, Path], override: str, least: float
) -> None:
    assert mean_auc(probe_of(folders["llama"], override)) >= least


def test_noise_in_the_update_hides_tokens(folders: dict[str, Path]) -> None:
    """Mode example, where each client adds the noise; 0.01 of it hides little."""
    mode = "privacy.mode=example"
    quiet, loud = (
        mean_auc(
            probe_of(folders["llama"], mode, f"privacy.noise_multiplier={noise}", "privacy.cap=1e9")
        )
        for noise in (0.3, 3.0)
    )
    assert loud == pytest.approx(0.5, abs=0.15)
    assert quiet < 1.0


def test_noise_per_coordinate_after_a_clip_of_one(folders: dict[str, Path]) -> None:
    """Notes 1.9: nearly all at 1e-4, about 0.7 at 1e-2, chance at 0.1 and above."""
    probe = probe_of(folders["gpt_neox"], "clients.learning_rate=1e4", targets=["query_key_value"])
    rng = np.random.default_rng(0)
    values = []
    for deviation in (1e-4, 1e-2, 1.0):
        noisy = []
        for number in range(6):
            seen = probe.sighting(number)
            views = tuple(
                View(
                    rows=view.rows + deviation * rng.standard_normal(view.rows.shape),
                    inputs=view.inputs,
                )
                for view in seen.views
            )
            noisy.append(found(Sighting(views=views, present=seen.present, tokens=seen.tokens)))
        values.append(float(np.mean(noisy)))
    assert values[0] >= 0.98
    assert values[0] > values[1] > values[2]
    assert values[2] == pytest.approx(0.5, abs=0.15)


def test_a_client_without_text_cannot_be_looked_at(folders: dict[str, Path]) -> None:
    probe = probe_of(folders["llama"], texts=0)
    with pytest.raises(AuditError, match="no text"):
        probe.sighting(0)


def audited(probe: RuntimeProbe) -> Finding:
    mode = probe.mode
    claim = Claim(
        mode=mode,
        epsilon=8.0,
        delta=1e-3,
        unit="example" if mode == "example" else "client",
        neighboring_relation="add-or-remove-one",
    )
    return run(Span(), AuditContext(claim=claim, seed=0, artefacts=(probe,)))


def test_a_short_text_is_readable_and_no_word_of_it_is_kept(folders: dict[str, Path]) -> None:
    finding = audited(probe_of(folders["llama"]))
    assert finding.verdict == "inconclusive"
    assert finding.value == pytest.approx(1.0)
    assert finding.positive_control is True
    assert finding.baseline is not None
    assert finding.baseline < 0.8
    words = (Words(6).client(0).train[0].text or "").split()
    assert leaked(finding, *(f'"{word}"' for word in words)) == []
    lists = [v for v in json.loads(json.dumps(dict(finding.evidence))).values() if type(v) is list]
    assert {len(v) for v in lists} == {8}


def test_noise_that_is_forgotten_is_a_violation(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = probe_of(folders["llama"], "privacy.mode=example")
    assert audited(probe).verdict != "violation"
    monkeypatch.setattr(NoiseSource, "normal", lambda self, n: np.zeros(n))
    finding = audited(probe)
    assert finding.verdict == "violation"
    assert finding.evidence["noise_alone"] is False


def test_masks_hide_what_a_share_alone_would_show(folders: dict[str, Path]) -> None:
    probe = probe_of(
        folders["llama"],
        "privacy.mode=client-distributed",
        "privacy.honest_fraction=0.9",
        "privacy.survivor_fraction=0.7",
        "privacy.min_cohort=5",
    )
    finding = audited(probe)
    assert probe.stage == "masked"
    assert finding.verdict == "consistent"
    assert finding.value is None


def test_the_adapter_is_left_as_it_was(folders: dict[str, Path]) -> None:
    probe = probe_of(folders["llama"], "aggregation.policy=ffa")
    model = probe._model
    before = model.factors()
    assert found(probe.sighting(0)) > 0
    assert found(probe.control(0)) > 0
    after = model.factors()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert model.kinds == "B"


def test_layers_that_are_fed_by_others_show_nothing(folders: dict[str, Path]) -> None:
    with pytest.raises(AuditError, match="fed with embeddings alone"):
        probe_of(folders["llama"], targets=["o_proj", "down_proj"])
