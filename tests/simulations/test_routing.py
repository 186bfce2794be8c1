"""How a mixture divides clients' texts: summed up as information theory says, and drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from typer.testing import CliRunner

from simulations.cli import app
from simulations.report import write_report
from simulations.routing import routing_picture, routing_summary
from tests.integration.scenario import run_small
from tests.integration.test_mixtures import MIXED
from tests.simulations.runs import make_run


def named(table: np.ndarray) -> dict[str, dict[str, float]]:
    return {
        f"adapter-{k}": {f"client-{c}": float(v) for c, v in enumerate(column)}
        for k, column in enumerate(table.T)
    }


@given(
    arrays.arrays(
        np.float64, st.tuples(st.integers(1, 6), st.integers(2, 8)), elements=st.floats(0.01, 1)
    )
)
def test_bits_are_a_difference_of_entropies(table: np.ndarray) -> None:
    """I(client; adapter) = H(adapter) - H(adapter | client), by another formula than ours."""
    table = table / table.sum(axis=1, keepdims=True)
    said = routing_summary({"after": {"client-0": 1.0}, **named(table)})
    assert said is not None
    mean = table.mean(axis=0)
    expected = -(mean * np.log2(mean)).sum() + (table * np.log2(table)).sum(axis=1).mean()
    assert said["bits"] == pytest.approx(max(0.0, expected), abs=1e-9)
    assert said["shares"] == pytest.approx(mean.tolist())
    assert said["clients"] == len(table)


def test_the_ends_of_the_scale() -> None:
    apart = routing_summary(named(np.array([[1.0, 0.0], [0.0, 1.0]])))
    alike = routing_summary(named(np.full((4, 2), 0.5)))
    assert apart is not None
    assert alike is not None
    assert (apart["bits"], alike["bits"]) == (1.0, 0.0)
    assert routing_summary({"after": {"client-0": 2.0}}) is None
    assert routing_picture({"adapter-0": {}, "adapter-1": {}}) is None


def test_the_report_draws_it_and_says_what_it_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert "router divides" not in write_report(folder).read_text()
    losses = json.loads((folder / "evaluation.json").read_text())
    table = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    (folder / "evaluation.json").write_text(json.dumps({**losses, **named(table)}))
    page = write_report(folder).read_text()
    assert "How the router divides" in page
    assert "a deployment does not have" in page


@pytest.mark.slow
def test_a_run_of_a_mixture_measures_it_and_is_cut_into_adapters(tmp_path: Path) -> None:
    result = run_small(tmp_path / "run", [*MIXED, "privacy.mode=none", "data.holdout=0.5"])
    routing = result.summary["routing"]
    assert sum(routing["shares"]) == pytest.approx(1)
    assert 0 <= routing["bits"] <= math.log2(2)
    said = CliRunner().invoke(
        app, ["adapter", "split", str(result.folder), "--to", str(tmp_path / "parts"), "--json"]
    )
    assert said.exit_code == 0, said.output
    assert len(json.loads(said.stdout)["folders"]) == 2
    plain = run_small(tmp_path / "plain", [*MIXED, "privacy.mode=none", "mixture.adapters=1"])
    assert plain.summary["routing"] is None
    again = CliRunner().invoke(
        app, ["adapter", "split", str(plain.folder), "--to", str(tmp_path / "none")]
    )
    assert again.exit_code != 0
