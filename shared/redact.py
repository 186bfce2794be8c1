"""What may leave a process in a log line or an error: codes, never contents.

Flower sends ``str(exception)`` of a client to the server; a record quoted in a message would be
exfiltrated. The client therefore turns every exception into a code before it can travel.
"""

from __future__ import annotations

from shared.errors import FedSLMError, all_errors


def scrub_exception(error: BaseException) -> str:
    """Return the stable code of an error and nothing else.

    Guarantee:
        The result is one of a fixed set of strings, whatever the exception holds.

    Args:
        error: any exception; its message, arguments, cause and traceback are ignored.

    Returns:
        ``error.code`` for our own errors, ``"unexpected"`` for all others.
    """
    if isinstance(error, FedSLMError) and error.code in known_codes():
        return error.code
    return FedSLMError.code


def known_codes() -> frozenset[str]:
    """Return every code that may cross the wire."""
    return frozenset(cls.code for cls in all_errors())
