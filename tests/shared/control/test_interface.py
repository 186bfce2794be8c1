from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from shared.control.fedslm.control.v1 import control_pb2
from shared.control.generate import PROTO, generate
from shared.control.methods import METHODS

ROOT = Path(__file__).parents[3]
SNAPSHOT = Path(__file__).with_name("v1.json")
FIELD = descriptor_pb2.FieldDescriptorProto

Snapshot = dict[str, dict[str, dict[str, Any]]]


def snapshot_of(file: descriptor_pb2.FileDescriptorProto) -> Snapshot:
    """Return what older programs rely on: numbers, names and types."""
    return {
        "messages": {
            message.name: {
                str(field.number): {
                    "name": field.name,
                    "type": FIELD.Type.Name(field.type),
                    "label": FIELD.Label.Name(field.label),
                    "of": field.type_name,
                    "optional": field.proto3_optional,
                }
                for field in message.field
            }
            for message in file.message_type
        },
        "services": {
            service.name: {
                method.name: {
                    "input": method.input_type,
                    "output": method.output_type,
                    "client_streaming": method.client_streaming,
                    "server_streaming": method.server_streaming,
                }
                for method in service.method
            }
            for service in file.service
        },
    }


def broken(stored: Snapshot, now: Snapshot) -> Iterator[str]:
    """Name everything of a stored interface that is gone or changed; additions are fine."""
    for kind, groups in stored.items():
        for group, members in groups.items():
            if group not in now[kind]:
                yield f"{group} is gone"
                continue
            for member, facts in members.items():
                found = now[kind][group].get(member)
                if found != facts:
                    yield f"{group}.{member}: was {facts}, is {found}"


def current() -> descriptor_pb2.FileDescriptorProto:
    return descriptor_pb2.FileDescriptorProto.FromString(control_pb2.DESCRIPTOR.serialized_pb)


def test_version_1_is_only_added_to() -> None:
    """On purpose after adding something: python -m tests.shared.control.test_interface."""
    stored = json.loads(SNAPSHOT.read_text())
    assert list(broken(stored, snapshot_of(current()))) == []


def test_what_was_added_is_in_the_snapshot() -> None:
    assert json.loads(SNAPSHOT.read_text()) == snapshot_of(current())


def test_the_package_says_its_version() -> None:
    assert current().package == "fedslm.control.v1"


def drop_field(file: descriptor_pb2.FileDescriptorProto) -> None:
    del file.message_type[0].field[0]


def drop_message(file: descriptor_pb2.FileDescriptorProto) -> None:
    del file.message_type[-1]


def renumber(file: descriptor_pb2.FileDescriptorProto) -> None:
    file.message_type[0].field[0].number = 99


def rename(file: descriptor_pb2.FileDescriptorProto) -> None:
    file.message_type[0].field[0].name = "other"


def retype(file: descriptor_pb2.FileDescriptorProto) -> None:
    file.message_type[0].field[0].type = FIELD.TYPE_INT64


def repeat(file: descriptor_pb2.FileDescriptorProto) -> None:
    file.message_type[0].field[0].label = FIELD.LABEL_REPEATED


def drop_presence(file: descriptor_pb2.FileDescriptorProto) -> None:
    statement = next(m for m in file.message_type if m.name == "Statement")
    next(f for f in statement.field if f.name == "epsilon").proto3_optional = False


def drop_method(file: descriptor_pb2.FileDescriptorProto) -> None:
    del file.service[0].method[0]


def drop_service(file: descriptor_pb2.FileDescriptorProto) -> None:
    del file.service[0]


def change_answer(file: descriptor_pb2.FileDescriptorProto) -> None:
    file.service[0].method[0].output_type = ".fedslm.control.v1.Node"


def stream(file: descriptor_pb2.FileDescriptorProto) -> None:
    file.service[0].method[0].server_streaming = True


@pytest.mark.parametrize(
    "change",
    [
        drop_field,
        drop_message,
        renumber,
        rename,
        retype,
        repeat,
        drop_presence,
        drop_method,
        drop_service,
        change_answer,
        stream,
    ],
)
def test_every_breaking_change_is_noticed(change: Any) -> None:
    file = current()
    stored = snapshot_of(copy.deepcopy(file))
    change(file)
    assert list(broken(stored, snapshot_of(file)))


def test_additions_are_not_breaking() -> None:
    file = current()
    stored = snapshot_of(file)
    file.message_type.add(name="New").field.add(name="x", number=1, type=FIELD.TYPE_INT64)
    file.message_type[0].field.add(name="x", number=900, type=FIELD.TYPE_STRING)
    file.service[0].method.add(name="New", input_type=".x", output_type=".x")
    assert list(broken(stored, snapshot_of(file))) == []


@pytest.mark.parametrize("name", ["control_pb2.py", "control_pb2.pyi"])
def test_the_generated_code_is_that_of_the_source(name: str, tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools comes with fedslm[dev]")
    generate(ROOT, tmp_path)
    made = (tmp_path / PROTO).with_name(name).read_text()
    assert made == (ROOT / PROTO).with_name(name).read_text()


def test_every_method_is_bound() -> None:
    named = {f"{s.name}.{m.name}" for s in current().service for m in s.method}
    assert set(METHODS) == named
    streaming = {name for name, method in METHODS.items() if method.streaming}
    assert streaming == {"Registry.Download"}
    for name, method in METHODS.items():
        assert method.path == f"/fedslm.control.v1.{name.replace('.', '/')}"
        assert method.request.DESCRIPTOR.name == name.split(".")[1] + "Request"


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(snapshot_of(current()), indent=1, sort_keys=True) + "\n")
