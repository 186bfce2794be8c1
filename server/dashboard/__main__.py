"""``python -m server.dashboard DIR``: what the supervisor starts."""

from __future__ import annotations

import sys
from pathlib import Path

from shared.errors import FedSLMError


def main(arguments: list[str]) -> int:
    """Serve one folder; returns the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m server.dashboard DIR\n")
        return 2
    from server.dashboard.serve import serve

    try:
        serve(Path(arguments[0]))
    except FedSLMError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
