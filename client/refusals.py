"""Why a device refused: in its own log, never on the wire."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import FedSLMError

logger = logging.getLogger("fedslm.client")


@contextmanager
def refusals_logged() -> Iterator[None]:
    """Write the reason of a refusal to the device's log; only its code crosses the wire."""
    try:
        yield
    except FedSLMError as error:
        logger.warning("refused [%s]: %s", error.code, error)
        raise
