"""Make the generated code anew: ``python -m shared.control.generate`` in the repository's root.

Needs ``grpcio-tools``, which is a tool of developers and no dependency at run time. Only messages
are generated; services are bound by hand (:mod:`shared.control.methods`), so that no generated
code stands between a request and its checks.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from shared.errors import FleetError, MissingDependency

PROTO = "shared/control/fedslm/control/v1/control.proto"


def generate(root: Path, out: Path) -> None:
    """Write ``control_pb2.py`` and ``control_pb2.pyi``.

    Args:
        root: the repository's root.
        out: where the tree of packages of the generated files starts; the root to replace them.

    Raises:
        MissingDependency: without ``grpcio-tools``.
        FleetError: if the compiler refuses the source.
    """
    try:
        from grpc_tools import protoc  # type: ignore[import-untyped]
    except ImportError as error:
        msg = "the protocol compiler is not installed."
        raise MissingDependency(msg, hint='pip install "fedslm[dev]"') from error
    include = resources.files("grpc_tools") / "_proto"
    wanted = [f"--python_out={out}", f"--pyi_out={out}"]
    code: int = protoc.main(["protoc", f"-I{root}", f"-I{include}", *wanted, PROTO])
    if code != 0:
        msg = f"the protocol compiler ended with code={code}, expected 0."
        raise FleetError(msg, hint=f"Correct {PROTO}.")
    # The compiler leaves out what strict type checking asks for.
    stub = (out / PROTO).with_name("control_pb2.pyi")
    stub.write_text(stub.read_text().replace("_Mapping]", "_Mapping[str, object]]"))


if __name__ == "__main__":
    generate(Path.cwd(), Path.cwd())
    sys.exit(0)
