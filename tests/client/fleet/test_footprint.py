"""What the parent process imports: neither Flower nor anything heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
import client.fleet.node
from client.fleet.identity import NodeIdentity
heavy = {'flwr', 'torch', 'numpy', 'transformers', 'pydantic', 'httpx', 'psutil', 'grpc'}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_the_parent_imports_nothing_heavy() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", CODE], cwd=root, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
