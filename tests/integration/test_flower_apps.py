"""The module-level apps that Flower's bundle names: a prepared run, and devices with a policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from client.app import app as client_app
from server.app import app as server_app
from server.prepared import read_setup
from server.setup import RunSetup
from shared.canonical import canonical_json
from shared.errors import (
    ClientFailed,
    InvalidValue,
    NotResumable,
    PolicyRefused,
    SchemaMismatch,
)
from shared.privacy.ledger import Ledger
from shared.wire import Instruction, decode_update, encode_instruction
from simulations.basepath import ASSETS
from simulations.corpora import private_records
from simulations.engine import InProcessGrid
from simulations.simulate import Result
from tests.client.device import CLIENT, EXAMPLE, write_policy
from tests.integration.device import demo_digest
from tests.integration.scenario import run_small

pytestmark = pytest.mark.slow

GENEROUS = {**CLIENT, "max_epsilon": 1000.0, "min_noise_multiplier": 0.01}


@pytest.fixture(scope="module")
def prepared(finished: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run's folder as it was before its first round."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copy(finished.folder / "run.json", folder)
    return folder


def context(
    folder: Path, *, run: dict[str, str] | None = None, **node: str | int | float | bool
) -> Context:
    return Context(
        run_id=1,
        node_id=1,
        node_config=node,
        state=RecordDict(),
        run_config=run or {"run-folder": str(folder)},  # type: ignore[arg-type]
    )


def policy(folder: Path, **changes: Any) -> Path:
    """Write what a data owner would allow in a rehearsal of the prepared run."""
    allowed = {"base_models": [demo_digest()], "seeded_noise": True, "client": GENEROUS}
    return write_policy(folder, "client-central", **{**allowed, **changes})


def node(tmp_path: Path, setup: RunSetup, index: int, /, **changes: Any) -> Context:
    data = tmp_path / f"client-{index}.jsonl"
    rows = [{"note": text} for text in private_records(index, seed=5, records=6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = setup.config.model_dump(mode="json")
    config["data"]["text"] = "note"
    run = {"scenario": json.dumps(config), "plan": canonical_json(setup.plan.to_json())}
    fields: dict[str, str | int | float | bool] = {
        "partition-id": index,
        "data-path": str(data),
        "base-path": str(ASSETS / "demo"),
        "policy-path": str(policy(tmp_path, **changes)),
        "state-path": str(tmp_path / "state"),
    }
    return context(tmp_path, run=run, **fields)


def ask(setup: RunSetup, where: Context) -> RecordDict:
    from shared.configfile import parse_json
    from shared.lora import initial_factors

    config = parse_json(str(where.run_config["scenario"]))
    vector = setup.spec.flatten(initial_factors(setup.spec, config.run.seed), "B")
    instruction = Instruction(
        run_id="r",
        server_round=1,
        config_digest=config.digest(),
        plan_digest=setup.plan.digest(),
        vector=vector,
    )
    InProcessGrid(client_app, 1)
    message = Message(encode_instruction(instruction), 1, "train", group_id="1")
    return client_app(message, where).content


def answer(setup: RunSetup, where: Context) -> None:
    from shared.configfile import parse_json

    digest = parse_json(str(where.run_config["scenario"])).digest()
    decode_update(
        ask(setup, where),
        server_round=1,
        config_digest=digest,
        stage="clipped",
        size=setup.spec.size("B"),
    )


def test_a_device_trains_from_its_own_file_under_its_own_policy(
    prepared: Path, tmp_path: Path
) -> None:
    setup = read_setup(prepared)
    answer(setup, node(tmp_path, setup, 0))


@pytest.mark.parametrize(
    "limit",
    [
        {"modes": ["example"], "client": None, "example": EXAMPLE},
        {"client": {**GENEROUS, "max_epsilon": 0.5}},
        {"client": {**GENEROUS, "min_noise_multiplier": 50.0}},
        {"base_models": ["0" * 64]},
        {"seeded_noise": False},
    ],
    ids=str,
)
def test_a_device_refuses_what_its_owner_does_not_allow(
    prepared: Path, tmp_path: Path, limit: dict[str, Any]
) -> None:
    setup = read_setup(prepared)
    with pytest.raises(ClientFailed, match=PolicyRefused.code):
        answer(setup, node(tmp_path, setup, 0, **limit))


@pytest.mark.parametrize("limit", [{"modes": []}, {"client": {**GENEROUS, "delta": 0.0}}], ids=str)
def test_a_device_with_a_broken_policy_takes_part_in_nothing(
    prepared: Path, tmp_path: Path, limit: dict[str, Any]
) -> None:
    setup = read_setup(prepared)
    with pytest.raises(ClientFailed, match=InvalidValue.code):
        answer(setup, node(tmp_path, setup, 0, **limit))


def test_the_server_app_runs_a_prepared_folder(finished: Result, prepared: Path) -> None:
    """Its rounds are those of the simulation: the same cohorts, noise and ledger."""
    from client.app import make_client_app
    from shared.configfile import parse_json
    from simulations.assemble import assemble_runtime

    setup = read_setup(prepared)
    config = parse_json(setup.config.to_json())
    runtime = assemble_runtime(config, setup.plan, base_dir=Path.cwd()).runtime
    simulated = make_client_app(lambda _: runtime, simulated=True)
    grid: Grid = InProcessGrid(simulated, setup.population)
    server_app(grid=grid, context=context(prepared))
    rounds = (prepared / "metrics.jsonl").read_text().splitlines()
    expected = (finished.folder / "metrics.jsonl").read_text().splitlines()
    for mine, theirs in zip(rounds, expected, strict=True):
        assert json.loads(mine)["loss"] == pytest.approx(json.loads(theirs)["loss"], abs=1e-5)
    with Ledger(prepared / "ledger.sqlite") as ledger:
        assert ledger.spent("population", "builtin:clinics").releases == 3
    resumed = run_small(prepared, resume=True)
    assert resumed.summary["status"] == "completed"
    assert resumed.summary["loss_after"] == pytest.approx(finished.summary["loss_after"], abs=1e-5)


def test_a_run_that_was_not_prepared_is_refused(tmp_path: Path) -> None:
    grid = InProcessGrid(client_app, 1)
    with pytest.raises(NotResumable):
        server_app(grid=grid, context=context(tmp_path))
    with pytest.raises(SchemaMismatch):
        server_app(grid=grid, context=context(tmp_path, run={"x": "y"}))
