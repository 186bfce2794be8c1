"""Token presence from row spaces: linear algebra against numpy's own, and what a verdict means."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from server.audit.protocol import AuditContext, Claim, Finding, Floats
from server.audit.span import Sighting, Span, UpdateProbe, View
from server.audit.tokenscores import Stage, numerical_rank, presence_auc, token_scores
from shared.errors import AuditError, MissingArtefact, TooFewCanaries
from tests.server.audit.oracles import NO_CLAIM, client_claim, example_claim, run, terms

VOCABULARY, WIDTH = 400, 64


def embeddings(seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((VOCABULARY, WIDTH))


def sighting(
    tokens: int, rows: int, *, noise: float = 0.0, seed: int = 0, project: int | None = None
) -> Sighting:
    """A gradient of A (or of B, where inputs are projected) from so many tokens, of norm 1."""
    rng = np.random.default_rng(seed)
    inputs = embeddings()
    if project is not None:
        inputs = inputs @ rng.standard_normal((WIDTH, project))
    present = np.zeros(VOCABULARY, dtype=np.bool_)
    present[rng.choice(VOCABULARY, tokens, replace=False)] = True
    matrix = rng.standard_normal((rows, tokens)) @ inputs[present]
    matrix /= np.linalg.norm(matrix)
    matrix += noise * rng.standard_normal(matrix.shape)
    return Sighting(
        views=(View(rows=matrix, inputs=lambda _: inputs),), present=present, tokens=tokens
    )


def found(seen: Sighting) -> float:
    return presence_auc(token_scores(seen), seen.present)


@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_no_more_tokens_than_rows_are_all_found(tokens: int) -> None:
    assert found(sighting(tokens, 8)) == 1.0


def test_scores_are_one_minus_the_squared_residual() -> None:
    """Oracle: numpy's least squares."""
    seen = sighting(20, 6)
    view = seen.views[0]
    scores = token_scores(seen)
    for token in (0, 7, 399):
        x = view.inputs(0)[token]
        weights, *_ = np.linalg.lstsq(view.rows.T, x, rcond=None)
        residual = x - view.rows.T @ weights
        assert scores[token] == pytest.approx(1 - residual @ residual / (x @ x), abs=1e-9)


def test_more_tokens_than_rows_hide_each_other() -> None:
    values = [np.mean([found(sighting(n, 8, seed=s)) for s in range(4)]) for n in (8, 16, 64, 256)]
    assert values[0] == 1.0
    assert all(np.diff(values) < 0)
    assert values[-1] < 0.75


def test_rows_that_fill_the_space_are_read_by_how_far_they_stretch() -> None:
    """Every row lies inside, so a residual would say nothing at all."""
    seen = sighting(300, WIDTH)
    view = seen.views[0]
    stretched = np.linalg.norm(embeddings() @ view.rows.T, axis=1) ** 2
    stretched /= np.linalg.norm(view.rows, 2) ** 2 * np.linalg.norm(embeddings(), axis=1) ** 2
    np.testing.assert_allclose(token_scores(seen), stretched)
    assert 0.5 < found(seen) < 0.85


def test_noise_hides_tokens() -> None:
    values = [
        np.mean([found(sighting(8, 8, noise=noise, seed=s)) for s in range(4)])
        for noise in (0.0, 1e-3, 1e-2, 1e-1, 1.0)
    ]
    assert values[0] == 1.0
    assert values[1] > 0.95
    assert values[2] > values[3]
    assert values[4] == pytest.approx(0.5, abs=0.1)


def test_frozen_a_shows_tokens_only_below_the_rank() -> None:
    """Rows of B's gradient live in r dimensions: r tokens fill them."""
    assert found(sighting(3, WIDTH, project=4)) == 1.0
    filled = [found(sighting(40, WIDTH, project=4, seed=s)) for s in range(6)]
    assert np.mean(filled) < 0.8


def test_an_update_of_zeros_says_nothing() -> None:
    seen = sighting(8, 8)
    zeros = View(rows=np.zeros((8, WIDTH)), inputs=seen.views[0].inputs)
    empty = Sighting(views=(zeros,), present=seen.present, tokens=8)
    assert found(empty) == 0.5
    assert numerical_rank(zeros.rows) == 0


def test_the_best_of_positions_and_matrices_counts() -> None:
    seen = sighting(4, 8)
    view = seen.views[0]
    shifted = View(rows=view.rows, inputs=lambda p: view.inputs(0) if p == 2 else embeddings(9))
    nothing = View(rows=np.zeros((8, WIDTH)), inputs=view.inputs)
    both = Sighting(views=(nothing, shifted), present=seen.present, tokens=4, positions=3)
    assert found(both) == 1.0
    early = Sighting(views=(shifted,), present=seen.present, tokens=4, positions=2)
    assert found(early) < 0.9


def test_all_tokens_or_none_is_no_question() -> None:
    for present in (np.zeros(5, dtype=np.bool_), np.ones(5, dtype=np.bool_)):
        with pytest.raises(AuditError, match="left a trace"):
            presence_auc(np.arange(5.0), present)


def test_rank_ignores_rounding() -> None:
    rows = np.diag([1.0, 1e-3, 1e-7])
    assert numerical_rank(rows) == 2


class MadeUpProbe(UpdateProbe):
    """Made-up gradients in place of clients."""

    mode = "client-central"
    stage: Stage = "clipped"
    factors = "AB"
    capacity = 8
    clients = 40

    def __init__(self, *, tokens: int = 100, noise: float = 0.0, **facts: Any) -> None:
        self.tokens, self.noise = tokens, noise
        self.control_noise = facts.pop("control_noise", 0.0)
        self.silent_rows = facts.pop("silent_rows", np.eye(8))
        for name, value in facts.items():
            setattr(self, name, value)

    def sighting(self, number: int) -> Sighting:
        return sighting(self.tokens, self.capacity, noise=self.noise, seed=number)

    def control(self, number: int) -> Sighting:
        return sighting(self.capacity, self.capacity, noise=self.control_noise, seed=100 + number)

    def without_text(self) -> Sighting:
        view = View(rows=self.silent_rows, inputs=lambda _: embeddings())
        return Sighting(views=(view,), present=np.zeros(VOCABULARY, dtype=np.bool_), tokens=0)


def audited(probe: MadeUpProbe, claim: Claim | None = None) -> Finding:
    context = AuditContext(
        claim=client_claim(4.0, 6.0) if claim is None else claim, seed=0, artefacts=(probe,)
    )
    return run(Span(), context)


def test_a_readable_update_is_said_and_is_no_violation_where_the_server_is_trusted() -> None:
    finding = audited(MadeUpProbe(tokens=6))
    assert finding.verdict == "inconclusive"
    assert finding.strength == "descriptive"
    assert finding.value == 1.0
    assert finding.interval == (1.0, 1.0)
    assert finding.baseline == pytest.approx(0.5, abs=0.1)
    assert finding.detected is True
    assert finding.positive_control is True
    assert "server is trusted" in finding.explanation
    assert "can read" in finding.explanation
    assert (finding.n_in, finding.n_out) == (8, 0)


def test_an_update_that_says_little_is_consistent() -> None:
    finding = audited(MadeUpProbe(tokens=250))
    assert finding.verdict == "consistent"
    assert finding.value is not None
    assert finding.value < 0.75
    assert "more than the 8" in finding.explanation


def test_noise_in_the_update_leaves_nothing() -> None:
    claim = example_claim(8.0)
    finding = audited(MadeUpProbe(tokens=6, noise=3.0, mode="example", stage="noised"), claim)
    assert finding.verdict == "consistent"
    assert finding.detected is False
    assert finding.evidence["noise_alone"] is True


@pytest.mark.parametrize("rows", [np.zeros((8, WIDTH)), np.eye(8)[:, :3] @ np.ones((3, 5))])
def test_noise_that_is_missing_is_a_violation(rows: Floats) -> None:
    probe = MadeUpProbe(mode="example", stage="noised", silent_rows=rows)
    finding = audited(probe, example_claim(8.0))
    assert finding.verdict == "violation"
    assert finding.strength == "conformance"
    assert "not full of noise" in finding.explanation


def test_a_masked_update_is_seen_by_nobody() -> None:
    finding = audited(MadeUpProbe(tokens=6, mode="client-distributed", stage="masked"))
    assert finding.verdict == "consistent"
    assert finding.value is None
    assert finding.interval is None
    assert finding.detected is None
    assert "Without their masks" in finding.explanation
    assert finding.evidence["derived"]["auc"] == 1.0


def test_a_run_without_a_claim_is_inconclusive() -> None:
    finding = audited(MadeUpProbe(tokens=6, mode="none", stage="plain"), NO_CLAIM)
    assert finding.verdict == "inconclusive"
    assert "claims no epsilon" in finding.explanation


def test_an_attack_that_does_not_work_is_inconclusive() -> None:
    finding = audited(MadeUpProbe(tokens=250, control_noise=1.0))
    assert finding.verdict == "inconclusive"
    assert finding.positive_control is False


def test_effort_asks_for_more_clients() -> None:
    context = AuditContext(
        claim=NO_CLAIM, seed=0, effort="release", artefacts=(MadeUpProbe(tokens=20),)
    )
    assert Span().measure(context)["clients"] == 16
    assert "16 clients" in Span().cost(context)


def test_evidence_names_no_token() -> None:
    """Lists have one entry per client, and every entry is a rate."""
    evidence = audited(MadeUpProbe(tokens=20)).evidence
    for key, value in json.loads(json.dumps(dict(evidence))).items():
        if isinstance(value, list):
            assert len(value) == 8, key
            assert all(0 <= entry <= 1 for entry in value), key


def test_what_is_missing_is_said() -> None:
    nothing = AuditContext(claim=NO_CLAIM, seed=0)
    assert "no client" in Span().cost(nothing)
    with pytest.raises(MissingArtefact, match="UpdateProbe"):
        Span().measure(nothing)
    few = AuditContext(claim=NO_CLAIM, seed=0, artefacts=(MadeUpProbe(clients=2),))
    with pytest.raises(TooFewCanaries):
        Span().measure(few)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clients", None),
        ("clients", 2),
        ("auc", [0.5] * 7),
        ("auc", [1.5] * 8),
        ("auc_of_another", "half"),
        ("control_auc", [None] * 8),
        ("mode", 3),
        ("stage", None),
        ("capacity", -1),
        ("median_tokens", "many"),
    ],
)
def test_malformed_evidence_is_an_audit_error(key: str, value: object) -> None:
    evidence = {**audited(MadeUpProbe(tokens=20)).evidence, key: value}
    with pytest.raises(AuditError):
        Span().conclude(evidence, terms(client_claim(4.0, None)))


def test_mode_example_needs_to_know_about_its_noise() -> None:
    probe = MadeUpProbe(mode="example", stage="noised")
    evidence = {**audited(probe, example_claim(8.0)).evidence, "noise_alone": None}
    with pytest.raises(AuditError):
        Span().conclude(evidence, terms(example_claim(8.0)))
