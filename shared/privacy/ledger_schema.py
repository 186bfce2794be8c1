"""The ledger's tables, once for both stores.

Version 2 keeps sums by kind of release (``spent.release``, canonical JSON) where version 1 had
columns for the Gaussian's two parameters, and has signed heads. The chain is the same in both.

Both stores sort text by code point (SQLite's ``BINARY``, PostgreSQL's ``"C"``), keep integers in
64 bits and floats as IEEE doubles.
"""

from __future__ import annotations

SCHEMA_VERSION = 2

_TABLES = {
    "plans": "digest {text} PRIMARY KEY, json {text} NOT NULL",
    "runs": (
        "run_id {text} NOT NULL, digest {text} NOT NULL, scope {text} NOT NULL, "
        "PRIMARY KEY (run_id, digest)"
    ),
    "entries": (
        "seq {integer} PRIMARY KEY, prev_hash {text} NOT NULL, hash {text} NOT NULL, "
        "time {text} NOT NULL, state {text} NOT NULL, reservation {integer} NOT NULL, "
        "run_id {text} NOT NULL, server_round {integer} NOT NULL, attempt {integer} NOT NULL, "
        "subject {text}, scope {text} NOT NULL, plan_digest {text} NOT NULL, "
        "event {text} NOT NULL, idempotency_key {text}"
    ),
    "heads": (
        "seq {integer} PRIMARY KEY, hash {text} NOT NULL, public_key {text} NOT NULL, "
        "signature {text} NOT NULL"
    ),
    "reservations": (
        "id {integer} PRIMARY KEY, run_id {text} NOT NULL, server_round {integer} NOT NULL, "
        "attempt {integer} NOT NULL, scope {text} NOT NULL, plan_digest {text} NOT NULL, "
        "event {text} NOT NULL, subjects_digest {text} NOT NULL, idempotency_key {text}, "
        "state {text} NOT NULL"
    ),
    "subjects": (
        "subject {text} NOT NULL, scope {text} NOT NULL, unit {text}, relation {text}, "
        "delta {real}, cap {real}, filter_order {real}, PRIMARY KEY (subject, scope)"
    ),
    "spent": (
        "subject {text} NOT NULL, scope {text} NOT NULL, plan_digest {text} NOT NULL, "
        "release {text} NOT NULL, count {integer} NOT NULL, "
        "PRIMARY KEY (subject, scope, plan_digest, release)"
    ),
}
_INDEXES = (
    "CREATE INDEX reservation_of_round ON reservations (run_id, server_round)",
    "CREATE INDEX entry_of_reservation ON entries (reservation)",
)
_POSTGRES_GUARD = (
    "CREATE FUNCTION fedslm_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "'BEGIN RAISE EXCEPTION ''% are append-only'', TG_TABLE_NAME; END'"
)
_APPEND_ONLY = ("entries", "heads")
_CLUSTERED = ("subjects", "spent")


def sqlite_table(name: str) -> str:
    """Return the statement that creates one table in SQLite."""
    columns = _TABLES[name].format(text="TEXT", integer="INTEGER", real="REAL")
    return f"CREATE TABLE {name} ({columns}) STRICT{', WITHOUT ROWID' * (name in _CLUSTERED)}"


def sqlite_guards(name: str) -> tuple[str, ...]:
    """Return the triggers that keep a table append-only against mistakes, not against attackers."""
    return tuple(
        f"CREATE TRIGGER {name}_{word} BEFORE {action} ON {name} "
        f"BEGIN SELECT RAISE(ABORT, '{name} are append-only'); END"
        for word, action in (("keep", "UPDATE"), ("stay", "DELETE"))
    )


def sqlite_schema() -> tuple[str, ...]:
    """Return the statements that make a SQLite file a ledger."""
    guards = tuple(guard for name in _APPEND_ONLY for guard in sqlite_guards(name))
    version = f"PRAGMA user_version = {SCHEMA_VERSION}"
    return (*map(sqlite_table, _TABLES), *_INDEXES, *guards, version)


def postgres_schema() -> tuple[str, ...]:
    """Return the statements that make a PostgreSQL schema a ledger."""
    types = {"text": 'TEXT COLLATE "C"', "integer": "BIGINT", "real": "DOUBLE PRECISION"}
    tables = (f"CREATE TABLE {n} ({columns.format(**types)})" for n, columns in _TABLES.items())
    guards = (
        f"CREATE TRIGGER {name}_{word} BEFORE {action} ON {name} "
        f"FOR EACH {each} EXECUTE FUNCTION fedslm_append_only()"
        for name in _APPEND_ONLY
        for word, action, each in (
            ("keep", "UPDATE OR DELETE", "ROW"),
            ("stay", "TRUNCATE", "STATEMENT"),
        )
    )
    return (
        "CREATE TABLE fedslm_ledger (version BIGINT NOT NULL)",
        f"INSERT INTO fedslm_ledger VALUES ({SCHEMA_VERSION})",  # noqa: S608
        *tables,
        *_INDEXES,
        _POSTGRES_GUARD,
        *guards,
    )
