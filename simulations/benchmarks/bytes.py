"""Bytes that one client sends and is sent in a round, by shape of the base, policy and mode.

Every message is built by the code that a run uses and counted twice: what Flower's ``count_bytes``
says (numbers and their names, what a run's metrics show), and all of Flower's objects with their
headers, as they cross the network. The envelope of a message (some 250 bytes) and HTTP are left
out, for everybody. The peer is Flower's FedAvg on PEFT's LoRA in float32: A and B of every layer as
an array of its own, down and up, with a configuration down and two numbers up.

In mode client-distributed a whole round of secure aggregation is played, with nobody dropping out;
what counts is the client that sent, and the one that was sent, most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from client.fleet.records import Record, encode
from shared.configlink import DownCodec, LinkSection, UpCodec
from shared.link import Downlink, uplink
from shared.lora import AdapterSpec, Factor
from shared.wire import ClientUpdate, encode_instruction, encode_update
from simulations.benchmarks.bytes_secure import DIGEST, Sent, instruction_of, numbers, secure
from simulations.benchmarks.engine_runs import ALPHA, M30, RANK
from simulations.benchmarks.footprintmodel import M135, Shape
from simulations.benchmarks.protocol import PROGRESS, BenchResult, Check, Scalar
from simulations.benchmarks.quality_arms import choices, kinds_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUMMARY = "Bytes up and down per client and round of every policy; Flower's FedAvg-LoRA beside."

DEMO = Shape(hidden=128, inner=344, layers=4, heads=4, kv_heads=2, vocabulary=1_280)
PEER = "Flower FedAvg, LoRA fp32"
NEVER_ABOVE = 1.0
CODES: tuple[tuple[UpCodec, DownCodec], ...] = (
    ("fp16", "fp16"),
    ("int8", "delta"),
    ("int4", "delta"),
    ("topk", "delta"),
)

Row = dict[str, Scalar]


def run(*, quick: bool) -> BenchResult:
    """Count the bytes of every policy.

    Args:
        quick: the demo model alone, and a small cohort.
    """
    policies = {policy: kinds_of(policy) for policy in choices()["policy"]}
    shapes = {"demo": DEMO} if quick else {"demo": DEMO, "30 M": M30, "135 M": M135}
    cohort = 8 if quick else 30
    rows: list[Row] = []
    checks: list[Check] = []
    for name, shape in shapes.items():
        spec = spec_of(shape)
        PROGRESS.info("%s: %d policies, with and without secure aggregation", name, len(policies))
        peer_up, peer_down = peer(spec)
        theirs = _row(name, PEER, "any", (peer_up, peer_down), spec.size("AB"))
        rows.append({**theirs, "up_over_peer": 1.0, "down_over_peer": 1.0})
        for policy, kinds in policies.items():
            for mode, moved in (
                ("none, example or client-central", plain(spec, kinds)),
                (f"client-distributed, {cohort} clients", secure(spec.size(kinds), cohort)),
            ):
                row = _row(name, policy, mode, moved, spec.size(kinds))
                over = moved[0].encoded / peer_up.encoded
                row["up_over_peer"] = round(over, 4)
                row["down_over_peer"] = round(moved[1].encoded / peer_down.encoded, 4)
                rows.append(row)
                if not mode.startswith("client-distributed"):
                    what = f"{name}, {policy}: upload over {PEER}"
                    checks.append(Check(name=what, measured=over, limit=NEVER_ABOVE, unit="x"))
        rows += _coded_rows(name, spec, (peer_up, peer_down))
    return BenchResult(
        name="bytes",
        parameters={"r": RANK, "target_modules": "all-linear", "quick": quick},
        rows=tuple(rows),
        checks=tuple(checks),
    )


def plot(result: BenchResult, path: Path) -> None:
    """Write the bytes of a result, over the peer's, as an SVG file.

    Raises:
        RunFolderError: if it cannot be written.
    """
    from shared.files import write_text
    from simulations.svg import BLUE, GREY, VERMILLION, as_file, legend, render

    rows = [row for row in result.rows if row["policy"] != PEER and "link" not in row]

    def draw(axes: Axes) -> None:
        for shift, key, colour, label in (
            (-0.18, "up_over_peer", BLUE, "up"),
            (0.18, "down_over_peer", VERMILLION, "down"),
        ):
            places = [place + shift for place in range(len(rows))]
            shares = [float(str(row[key])) for row in rows]
            axes.barh(places, shares, height=0.34, color=colour, label=label)
            for place, share in zip(places, shares, strict=True):
                axes.annotate(f" {share:.2f}", (share, place), va="center", fontsize=8.5)
        axes.axvline(1.0, color=GREY, linestyle=(0, (4, 3)), linewidth=1.4, label=PEER)
        names = [f"{row['base']}, {row['policy']},\n{row['mode']}" for row in rows]
        axes.set_yticks(range(len(rows)), labels=names, fontsize=8.5)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"bytes of a client and round, over {PEER}")
        legend(axes)

    element = render(draw, size=(7.0, 1.2 + 0.6 * len(rows)))
    write_text(path, as_file(element, title=SUMMARY))


def spec_of(shape: Shape) -> AdapterSpec:
    """Return the adapter of a llama-like model on all its linear layers."""
    factors = []
    for layer in range(shape.layers):
        for module, (d_out, d_in) in shape.linear.items():
            stem = f"base_model.model.model.layers.{layer}.{module}.lora_"
            factors.append(Factor(name=f"{stem}A.weight", kind="A", shape=(RANK, d_in)))
            factors.append(Factor(name=f"{stem}B.weight", kind="B", shape=(d_out, RANK)))
    return AdapterSpec(
        factors=tuple(sorted(factors, key=lambda factor: factor.name)),
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=tuple(sorted(name.rpartition(".")[2] for name in shape.linear)),
    )


def plain(spec: AdapterSpec, kinds: str) -> tuple[Sent, Sent]:
    """Return what a client sends and is sent in a round without secure aggregation."""
    vector = numbers(spec.size(kinds))
    answer = ClientUpdate(server_round=1, config_digest=DIGEST, stage="clipped", vector=vector)
    return Sent.of(encode_update(answer)), Sent.of(encode_instruction(instruction_of(vector)))


def coded(spec: AdapterSpec, kinds: str, link: LinkSection) -> tuple[Sent, Sent]:
    """Return what a client sends and is sent in a round over a coded link, not packed.

    Args:
        spec: the adapter.
        kinds: the factors that are sent.
        link: the codes; of neither does the length depend on the numbers.
    """
    vector = numbers(spec.size(kinds))
    up, (seen, down) = uplink(link), Downlink(link, np.zeros_like(vector)).seen(vector)
    answer = ClientUpdate(
        server_round=1,
        config_digest=DIGEST,
        stage="clipped",
        vector=vector,
        coded=None if up is None else up.encode(vector, None),
    )
    told = replace(instruction_of(seen), coded=down)
    return Sent.of(encode_update(answer)), Sent.of(encode_instruction(told))


def peer(spec: AdapterSpec) -> tuple[Sent, Sent]:
    """Return what a client of Flower's FedAvg on PEFT's LoRA sends and is sent in a round."""
    arrays = {
        factor.name: numbers(factor.size, number).reshape(factor.shape)
        for number, factor in enumerate(spec.factors)
    }
    up = Record(
        arrays={"arrays": arrays}, metrics={"metrics": {"train_loss": 1.5, "num-examples": 64}}
    )
    down = Record(arrays={"arrays": arrays}, configs={"config": {"lr": 1e-4, "server-round": 1}})
    return counted(up), counted(down)


def counted(record: Record) -> Sent:
    """Count a content of ours as Flower counts its own."""
    tree = encode(record)
    groups: list[Mapping[str, Any]] = [*record.configs.values(), *record.metrics.values()]
    scalars = sum(len(key) + 8 for group in groups for key in group)
    arrays = [item for group in record.arrays.values() for item in group.items()]
    # 128 bytes of numpy's own header come with each array.
    named = sum(len(key) + 128 + array.nbytes for key, array in arrays)
    return Sent(payload=scalars + named, encoded=tree.size, objects=len(tree.contents))


def _coded_rows(name: str, spec: AdapterSpec, theirs: tuple[Sent, Sent]) -> list[Row]:
    """Return a row for each code of updates, with and without A."""
    rows = []
    for policy in ("ffa", "fedavg"):
        kinds = kinds_of(policy)
        for up, down in CODES:
            moved = coded(spec, kinds, LinkSection(up=up, down=down))
            row = _row(name, policy, "none, example or client-central", moved, spec.size(kinds))
            row["up_over_peer"] = round(moved[0].encoded / theirs[0].encoded, 4)
            row["down_over_peer"] = round(moved[1].encoded / theirs[1].encoded, 4)
            rows.append({**row, "link": f"{up} up, {down} down"})
    return rows


def _row(base: str, policy: str, mode: str, moved: tuple[Sent, Sent], size: int) -> Row:
    """Return one line of the table."""
    up, down = moved
    return {
        "base": base,
        "policy": policy,
        "mode": mode,
        "parameters": size,
        "up_bytes": up.encoded,
        "down_bytes": down.encoded,
        "up_payload": up.payload,
        "down_payload": down.payload,
        "up_objects": up.objects,
        "down_objects": down.objects,
    }
