"""Starting the client's libraries says nothing that its owner could act on."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_importing_the_model_code_is_silent_about_kernels_of_other_machines() -> None:
    code = "import torchao, client.model, transformers.modeling_utils, peft"
    # The order of a real start: the package first, what it imports after that.
    code = f"import client; {code}"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    said = [line for line in ended.stderr.splitlines() if "torchao" in line or "_pytree" in line]
    assert said == []
