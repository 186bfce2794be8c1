"""``python -m server.control HOME``: serve the folder of a server until told to stop."""

from __future__ import annotations

import sys
from pathlib import Path

from server.control.serve import run
from server.home import ServerHome
from shared.errors import FedSLMError, UsageError


def main(arguments: list[str]) -> int:
    """Serve; errors go to stderr, and their exit code is returned."""
    try:
        if len(arguments) != 1:
            msg = f"{len(arguments)} arguments, expected the folder of a server."
            raise UsageError(msg, hint="python -m server.control HOME")
        run(ServerHome.open(Path(arguments[0])))
    except FedSLMError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
