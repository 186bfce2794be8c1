"""The benchmark of traffic counts what Flower counts, on adapters of the shapes that it names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from client.fleet.records import Record
from simulations.basepath import ASSETS, DEMO
from simulations.benchmarks import bytes as traffic
from simulations.benchmarks.bytes_secure import Sent, secure
from simulations.benchmarks.catalog import benchmark
from simulations.benchmarks.engine_runs import M30, Work
from simulations.benchmarks.footprintmodel import M135, SMALL, Shape

NUMBERS = np.random.default_rng(4).standard_normal((5, 3)).astype(np.float32)


def flowers_bytes(content: RecordDict) -> int:
    """Count every object of a content as Flower writes it."""
    return sum(len(item.deflate()) for item in get_all_nested_objects(content).values())


def test_a_content_of_ours_has_flowers_bytes() -> None:
    content = RecordDict({"c": ConfigRecord({"a": 1, "b": "word"}), "n": ArrayRecord([NUMBERS])})
    sent = Sent.of(content)
    assert sent.encoded == flowers_bytes(content)
    assert sent.objects == len(get_all_nested_objects(content))
    assert sent.payload == sum(record.count_bytes() for record in content.values())


def test_the_peers_content_has_flowers_bytes() -> None:
    mine = Record(
        arrays={"arrays": {"x": NUMBERS, "y": NUMBERS + 1}},
        metrics={"metrics": {"train_loss": 1.5, "num-examples": 64}},
    )
    arrays = ArrayRecord(numpy_ndarrays=[NUMBERS, NUMBERS + 1])
    named = ArrayRecord(dict(zip(("x", "y"), arrays.values(), strict=True)))
    metrics = MetricRecord({"train_loss": 1.5, "num-examples": 64})
    theirs = RecordDict({"arrays": named, "metrics": metrics})
    sent = traffic.counted(mine)
    assert sent.encoded == flowers_bytes(theirs)
    assert sent.payload == sum(record.count_bytes() for record in theirs.values())


@pytest.mark.parametrize("shape", [SMALL, M30, M135], ids=["small", "30M", "135M"])
def test_adapters_have_the_size_of_their_shape(shape: Shape) -> None:
    assert traffic.spec_of(shape).size("B") == shape.adapter_size


@pytest.mark.slow
def test_the_demo_adapter_is_the_one_that_peft_makes() -> None:
    from simulations.assemble import load_model

    config = Work(what="base", population=1, cohort=1, rounds=1).resolved().config
    assert json.loads((ASSETS / DEMO / "config.json").read_text())["hidden_size"] == 128
    assert load_model(config, base_dir=Path.cwd()).spec == traffic.spec_of(traffic.DEMO)


def test_secure_aggregation_sends_a_word_for_each_parameter_and_little_more() -> None:
    up, down = secure(10_000, 8)
    assert 40_000 < up.encoded < 40_000 + 8_000
    assert 40_000 < down.encoded < 40_000 + 16_000
    assert up.payload < up.encoded


@pytest.mark.slow
def test_a_quick_run(tmp_path: Path) -> None:
    assert benchmark("bytes").SUMMARY == traffic.SUMMARY
    result = traffic.run(quick=True)
    assert result.passed
    peer, *ours = (row for row in result.rows if "link" not in row)
    assert [row["policy"] for row in ours[:4]] == ["ffa", "ffa", "fedavg", "fedavg"]
    assert peer["up_over_peer"] == 1.0
    assert float(str(ours[0]["up_over_peer"])) < 0.6
    assert all(int(str(row["up_objects"])) < int(str(peer["up_objects"])) for row in ours[::2])
    for row in (peer, *ours):
        assert int(str(row["up_bytes"])) > 4 * int(str(row["parameters"]))
    linked = [row for row in result.rows if "link" in row]
    assert [row["policy"] for row in linked] == ["ffa"] * 4 + ["fedavg"] * 4
    for row in linked:
        code = str(row["link"]).split()[0]
        # Bytes a number: a scale of two for 64, a map of one bit, one number in twenty.
        each = {"fp16": 2, "int8": 1 + 1 / 32, "int4": 0.5 + 1 / 32, "topk": 1 / 8 + 33 / 640}[code]
        over = int(str(row["up_payload"])) - each * int(str(row["parameters"]))
        assert 0 < over < 400
    assert len(result.checks) == len(ours) // 2
    json.dumps(result.to_dict())
    traffic.plot(result, tmp_path / "bytes.svg")
    text = (tmp_path / "bytes.svg").read_text(encoding="utf-8")
    assert "demo, fedavg," in text
    assert text.count(f" {ours[0]['up_over_peer']:.2f}<") >= 1
