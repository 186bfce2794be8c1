"""Our proto against Flower's descriptors, and the generated code against its source."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from client.fleet import fleet_pb2

ROOT = Path(__file__).parents[2]
# Python would not see its own types under these names.
RENAMED = {"flag": "bool", "data": "bytes"}
FLOWER = {
    message.name: message
    for module in ("error fab fleet heartbeat message node recorddict run transport".split())
    for message in import_module(
        f"flwr.proto.{module}_pb2"
    ).DESCRIPTOR.message_types_by_name.values()
}


def pairs() -> list[tuple[Descriptor, Descriptor]]:
    """Return each of our messages with Flower's, nested ones too."""
    found = []
    for name, ours in fleet_pb2.DESCRIPTOR.message_types_by_name.items():
        found.append((ours, FLOWER[name]))
        found += [
            (inner, FLOWER[name].nested_types_by_name[inner.name]) for inner in ours.nested_types
        ]
    return found


def shape(field: FieldDescriptor) -> tuple[object, ...]:
    """Return what of a field is on the wire, and how it is read."""
    kind = None if field.message_type is None else field.message_type.name
    oneof = None if field.containing_oneof is None else field.containing_oneof.name
    return field.type, field.is_repeated, kind, field.has_presence, oneof


@pytest.mark.parametrize("pair", pairs(), ids=lambda pair: str(pair[0].name))
def test_every_field_is_flowers(pair: tuple[Descriptor, Descriptor]) -> None:
    ours, theirs = pair
    for field in ours.fields:
        twin = theirs.fields_by_number[field.number]
        assert RENAMED.get(field.name, field.name) == twin.name
        assert shape(field) == shape(twin)


def test_values_have_all_of_flowers_kinds() -> None:
    for name in ("ConfigRecordValue", "MetricRecordValue", "Scalar"):
        ours = fleet_pb2.DESCRIPTOR.message_types_by_name[name]
        assert set(ours.fields_by_number) == set(FLOWER[name].fields_by_number)


def test_the_two_do_not_clash() -> None:
    assert fleet_pb2.DESCRIPTOR.package == "fedslm.fleet.v1"
    assert fleet_pb2.DESCRIPTOR.pool is next(iter(FLOWER.values())).file.pool


def test_the_generated_code_is_up_to_date(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is a developer's tool")
    arguments = [f"-I{ROOT}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    assert protoc.main(["protoc", *arguments, "client/fleet/fleet.proto"]) == 0
    for name in ("fleet_pb2.py", "fleet_pb2.pyi"):
        made = (tmp_path / "client" / "fleet" / name).read_text(encoding="utf-8")
        kept = (ROOT / "client" / "fleet" / name).read_text(encoding="utf-8")
        # The compiler's own version may differ; what it describes may not.
        assert _described(made) == _described(kept)


def _described(code: str) -> list[str]:
    """Return the code without the compiler's version."""
    lines = code.splitlines()
    return [
        line
        for line in lines
        if line.strip().rstrip(",").isdigit() is False and "Version:" not in line
    ]
