"""The redactor under audit and the queries that it is tried on."""

from __future__ import annotations

from pathlib import Path

from shared.errors import MissingDependency
from simulations.auditing.queries import DeviceRedactor, embedded_queries, load_queries


def query_artefacts(file: Path | None) -> list[object]:
    """Return the device's redactor with labelled queries.

    Args:
        file: the user's own labelled queries; the embedded ones if not given.

    Returns:
        Nothing where the redactor's extra is not installed and no file was given: the audit then
        says that it could not be run.

    Raises:
        MissingDependency: if a file was given and the extra is not installed.
        DataError: if the file cannot be read.
    """
    try:
        redactor = DeviceRedactor()
    except MissingDependency:
        if file is not None:
            raise
        return []
    return [redactor, embedded_queries() if file is None else load_queries(file)]
