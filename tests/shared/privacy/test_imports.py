from __future__ import annotations

import json
import subprocess
import sys

import shared.privacy

PROGRAM = """
import importlib, json, pkgutil, sys
import shared.privacy
for module in pkgutil.iter_modules(shared.privacy.__path__):
    importlib.import_module(f"shared.privacy.{module.name}")
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def test_the_core_starts_without_frameworks_and_without_the_slow_accountant() -> None:
    root = shared.privacy.__path__[0].removesuffix("/shared/privacy")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=root
    )
    loaded = set(json.loads(done.stdout))
    assert {"shared", "numpy", "cryptography"} <= loaded
    assert not loaded & {"dp_accounting", "scipy", "torch", "flwr", "transformers", "peft"}
