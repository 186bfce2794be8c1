"""A process that answers where torch and its kind cannot be imported.

``python -m tests.client.answering.untorched HOME EXPORT PROMPT`` prints an answer as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.client.edge.untorched import BLOCKED, Wall


def main(home: str, export: str, prompt: str) -> None:
    """Answer and print."""
    sys.meta_path.insert(0, Wall())

    from client.inference import LocalModel

    model = LocalModel.load(Path(home), base=export)
    answer = model.generate(prompt, max_tokens=8)
    found = sorted({name.split(".")[0] for name in sys.modules} & BLOCKED)
    print(json.dumps({"text": answer.text, "found": found, "runtime": model.runtime}))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
