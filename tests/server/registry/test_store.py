"""The registry: versions, orders, reading, and everything that it refuses."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from server.audit.verify import sign_report
from server.registry import AdapterRegistry, add_run, server_registry, verify_registry
from server.registry.export import export_version
from server.registry.history import stack_of
from shared.errors import (
    AdapterCorrupt,
    AdapterError,
    AdapterIncompatible,
    AdapterUntrusted,
    FleetError,
    InvalidValue,
    ReleaseRefused,
    RunFolderExists,
)
from shared.manifest import PEFT_CONFIG, RELEASE, REPORT, REPORT_SIGNATURE, RUN_MANIFEST, WEIGHTS
from tests.adapterkit import (
    BASE,
    HEAD,
    PLAN,
    SIGNER,
    STRANGER,
    add,
    open_registry,
    report_about,
    rewrite,
    weights_digest,
    write_folder,
)


@pytest.fixture
def registry(tmp_path: Path) -> AdapterRegistry:
    return open_registry(tmp_path / "registry")


def add_again(registry: AdapterRegistry, folder: Path, **more: Any) -> None:
    """Add a folder as it is, with a good report in it."""
    registry.add(folder, name="small", base_digest=BASE, **more)


def folder_with_report(folder: Path, verdict: str = "consistent") -> Path:
    weights = write_folder(folder)
    (folder / REPORT).write_text(json.dumps(report_about(weights, verdict)))
    return folder


def test_a_version_says_what_was_added(registry: AdapterRegistry, tmp_path: Path) -> None:
    version = add(registry, tmp_path / "a")
    facts = version.facts
    assert version.state == "registered"
    assert version.signature.holds()
    assert version.signature.public_key == SIGNER.public_key
    assert (facts.base_digest, facts.plan_digest, facts.ledger_head) == (BASE, PLAN, HEAD)
    assert facts.verdict == "consistent"
    assert (facts.privacy.epsilon, facts.privacy.unit) == (3.0, "client")
    assert [entry.name for entry in facts.files] == [PEFT_CONFIG, WEIGHTS, REPORT, RUN_MANIFEST]
    assert facts.file(WEIGHTS).sha256 == weights_digest(tmp_path / "a")
    assert registry.get(version.digest) == version
    assert registry.current() is None
    assert verify_registry(registry).holds


def test_what_is_given_out_are_the_bytes_that_were_added(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    version = add(registry, tmp_path / "a")
    whole = registry.read(version.digest, 0, 1 << 24)
    assert len(whole) == registry.size(version.digest) == version.facts.size
    start = 0
    for entry in version.facts.files:
        piece = registry.read(entry.sha256, 0, entry.size + 9)
        assert whole[start : start + entry.size] == piece
        if entry.name != REPORT:
            assert piece == (tmp_path / "a" / entry.name).read_bytes()
        start += entry.size
    assert json.loads(registry.read(version.facts.file(REPORT).sha256, 0, 1 << 20)) == report_about(
        weights_digest(tmp_path / "a")
    )


@given(st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_of_any_size_make_up_the_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.getbasetemp() / "pieces"
    registry = open_registry(root / "registry")
    version = (registry.versions() or (add(registry, root / "a"),))[0]
    whole = registry.read(version.digest, 0, 1 << 24)
    offset = data.draw(st.integers(0, len(whole) + 5))
    size = data.draw(st.integers(0, len(whole) + 5))
    assert registry.read(version.digest, offset, size) == whole[offset : offset + size]


def test_the_same_adapter_is_one_version(registry: AdapterRegistry, tmp_path: Path) -> None:
    first = add(registry, tmp_path / "a")
    assert add(registry, tmp_path / "b").digest == first.digest
    other = add(registry, tmp_path / "c", 2, parent=first.digest)
    assert [v.digest for v in registry.versions()] == [other.digest, first.digest]
    assert (other.facts.sequence, other.facts.parent) == (2, first.digest)


def test_promotions_and_rollbacks_are_a_signed_chain(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    a, b, c = (add(registry, tmp_path / str(n), n).digest for n in (1, 2, 3))
    for digest in (a, b, c):
        assert registry.promote(digest).state == "current"
    assert registry.rollback().digest == b
    assert registry.rollback().digest == a
    with pytest.raises(AdapterError, match="1 versions were in use"):
        registry.rollback()
    registry.promote(c)
    orders = [signed.order for signed in registry.orders()]
    assert [(o.number, o.kind, o.digest) for o in orders] == [
        (1, "promote", a),
        (2, "promote", b),
        (3, "promote", c),
        (4, "rollback", b),
        (5, "rollback", a),
        (6, "promote", c),
    ]
    assert [o.previous for o in orders] == [None, *(o.hash for o in orders[:-1])]
    assert [v.state for v in registry.versions()] == ["current", "released", "released"]
    assert registry.promote(a).state == "current"
    assert registry.orders()[-1].order.kind == "rollback"
    assert verify_registry(registry).holds


def test_promoting_what_is_in_use_writes_no_order(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    digest = add(registry, tmp_path / "a").digest
    registry.promote(digest)
    registry.promote(digest)
    assert len(registry.orders()) == 1


def test_a_later_version_knows_the_orders_before_it(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    first = add(registry, tmp_path / "a", 1)
    registry.promote(first.digest)
    assert (first.facts.order, add(registry, tmp_path / "b", 2).facts.order) == (0, 1)


def test_a_violation_gets_in_as_evidence_alone(registry: AdapterRegistry, tmp_path: Path) -> None:
    with pytest.raises(ReleaseRefused, match="verdict=violation"):
        add(registry, tmp_path / "a", verdict="violation")
    assert registry.versions() == ()
    version = add(registry, tmp_path / "a", verdict="violation", withheld=True)
    assert (version.state, version.facts.verdict) == ("withheld", "violation")
    with pytest.raises(ReleaseRefused, match="is withheld"):
        registry.promote(version.digest, unaudited=True)
    for digest in (version.digest, version.facts.file(WEIGHTS).sha256):
        with pytest.raises(AdapterUntrusted, match="withheld"):
            registry.read(digest, 0, 10)
    with pytest.raises(AdapterUntrusted, match="withheld"):
        export_version(registry, version.digest, tmp_path / "out")
    # What is also part of a version in use is given out.
    good = add(registry, tmp_path / "b", 2)
    assert registry.read(good.facts.file(PEFT_CONFIG).sha256, 0, 10)


def test_a_release_record_that_says_violation_is_refused_too(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    folder = folder_with_report(tmp_path / "a")
    record = {"weights_sha256": weights_digest(folder), "audit_verdict": "violation"}
    (folder / RELEASE).write_text(json.dumps(record))
    with pytest.raises(ReleaseRefused, match=r"release\.json says verdict=violation"):
        add_again(registry, folder)
    (folder / RELEASE).write_text(json.dumps({**record, "audit_verdict": "consistent"}))
    with pytest.raises(ReleaseRefused, match="names another audit report"):
        add_again(registry, folder)
    (folder / RELEASE).write_text(json.dumps({**record, "weights_sha256": "00" * 32}))
    with pytest.raises(ReleaseRefused, match="other weights"):
        add_again(registry, folder)


def test_an_adapter_without_an_audit_is_kept_and_not_used(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    version = add(registry, tmp_path / "a", verdict=None)
    assert version.facts.audit is None
    with pytest.raises(ReleaseRefused, match="no audit report"):
        registry.promote(version.digest)
    assert registry.promote(version.digest, unaudited=True).state == "current"


def test_a_report_about_other_weights_or_of_another_auditor_is_refused(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    weights = write_folder(tmp_path / "a")
    with pytest.raises(ReleaseRefused, match="about other weights"):
        add_again(registry, tmp_path / "a", audit=report_about("00" * 32))
    good = report_about(weights)
    with pytest.raises(ReleaseRefused, match="does not hold"):
        add_again(registry, tmp_path / "a", audit={**good, "verdict": "inconclusive"})
    with pytest.raises(ReleaseRefused, match="does not hold"):
        add_again(registry, tmp_path / "a", audit=good, audit_key=STRANGER.public_key)
    signature = sign_report(good, STRANGER).to_dict()
    add_again(
        registry,
        tmp_path / "a",
        audit=good,
        audit_signature=signature,
        audit_key=STRANGER.public_key,
    )
    audit = registry.versions()[0].facts.audit
    assert audit is not None
    assert audit.signed_by == STRANGER.public_key


def test_a_report_without_a_subject_is_no_audit_of_these_weights(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    weights = write_folder(tmp_path / "a")
    add_again(registry, tmp_path / "a", audit={**report_about(weights), "subject": {}})
    assert registry.versions()[0].facts.audit is None


def test_damaged_and_hostile_folders_are_refused(registry: AdapterRegistry, tmp_path: Path) -> None:
    folder = folder_with_report(tmp_path / "a")
    weights = (folder / WEIGHTS).read_bytes()
    cases: list[tuple[str, bytes, type[AdapterError]]] = [
        (WEIGHTS, weights[:-1], AdapterCorrupt),
        (WEIGHTS, b"", AdapterCorrupt),
        (WEIGHTS, b"\x80\x04pickle" * 9, AdapterCorrupt),
        (PEFT_CONFIG, b"[]", AdapterCorrupt),
        (PEFT_CONFIG, b'{"peft_type":"LORA","use_dora":true}', AdapterIncompatible),
        (RUN_MANIFEST, b'{"weights_sha256":"00"}', AdapterCorrupt),
        (RUN_MANIFEST, b"no", AdapterCorrupt),
        (REPORT, b"no", AdapterCorrupt),
        (REPORT, b"[]", AdapterCorrupt),
        (REPORT_SIGNATURE, b"{}", AdapterCorrupt),
    ]
    for name, data, error in cases:
        before = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_bytes(data)
        with pytest.raises(error):
            add_again(registry, folder)
        (folder / name).unlink()
        if before is not None:
            (folder / name).write_bytes(before)
    assert registry.versions() == ()
    add_again(registry, folder)


@pytest.mark.parametrize("name", [WEIGHTS, PEFT_CONFIG, REPORT, RELEASE])
def test_a_link_in_the_folder_is_not_followed(
    registry: AdapterRegistry, tmp_path: Path, name: str
) -> None:
    folder = folder_with_report(tmp_path / "a")
    outside = tmp_path / "outside"
    if (folder / name).exists():
        (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(AdapterCorrupt, match="cannot be read"):
        add_again(registry, folder)


def test_a_pipe_in_the_folder_does_not_hang(registry: AdapterRegistry, tmp_path: Path) -> None:
    folder = folder_with_report(tmp_path / "a")
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    with pytest.raises(AdapterCorrupt, match="no regular file"):
        add_again(registry, folder)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "manifest.json", ".x", "a/b"])
def test_no_file_name_leads_out_of_the_folder(
    registry: AdapterRegistry, tmp_path: Path, name: str
) -> None:
    with pytest.raises(InvalidValue, match="not plain"):
        add_again(registry, folder_with_report(tmp_path / "a"), files=(name,))


@pytest.mark.parametrize("digest", ["", "../x", "../../../etc/passwd", "a" * 63, "A" * 64, "\x00"])
def test_no_digest_leads_out_of_the_registry(registry: AdapterRegistry, digest: str) -> None:
    for act in (registry.get, registry.promote, registry.remove, registry.size):
        with pytest.raises(AdapterError):
            act(digest)
    with pytest.raises(AdapterError):
        registry.read(digest, 0, 1)


@pytest.mark.parametrize("change", [{"name": "a/b"}, {"base_digest": "x"}, {"parent": "0a" * 32}])
def test_labels_and_digests_of_a_version_are_checked(
    registry: AdapterRegistry, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = folder_with_report(tmp_path / "a")
    with pytest.raises(InvalidValue):
        registry.add(folder, **{"name": "small", "base_digest": BASE, **change})
    assert registry.versions() == ()


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, -1), (0, (1 << 24) + 1)])
def test_reads_are_bounded(
    registry: AdapterRegistry, tmp_path: Path, offset: int, size: int
) -> None:
    version = add(registry, tmp_path / "a")
    with pytest.raises(InvalidValue, match="expected at most"):
        registry.read(version.digest, offset, size)
    assert registry.read(version.digest, 1 << 60, 10) == b""


def test_every_damage_on_disk_is_found(registry: AdapterRegistry, tmp_path: Path) -> None:
    for seed in (1, 2):
        registry.promote(add(registry, tmp_path / str(seed), seed).digest)
    files = [path for path in registry.root.rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(files) >= 10
    for path in files:
        data = path.read_bytes()
        if path.name == "registry.json":
            continue
        for damaged in (data[:-2], data.replace(b"1", b"2", 1), b"", b"{}"):
            if damaged == data:
                continue
            path.write_bytes(damaged)
            report = verify_registry(open_registry(registry.root))
            assert not report.holds, (path.name, damaged[:40])
        path.unlink()
        missing = verify_registry(open_registry(registry.root))
        last_order = path.name == "00000002.json"
        first_version = path.parent.name == "versions" and "sequence" in data.decode()
        assert missing.holds == (last_order or (first_version and b'"sequence": 1' in data))
        path.write_bytes(data)
    assert verify_registry(open_registry(registry.root)).holds


def test_a_version_with_a_damaged_file_is_not_promoted(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    good, bad = (add(registry, tmp_path / str(n), n) for n in (1, 2))
    registry.promote(good.digest)
    blob = bad.facts.file(WEIGHTS).sha256
    path = registry.root / "blobs" / blob[:2] / blob
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(AdapterCorrupt, match="damaged"):
        registry.promote(bad.digest)
    current = registry.current()
    assert current is not None
    assert current.digest == good.digest
    # Adding it again repairs it.
    add(registry, tmp_path / "again", 2)
    assert registry.promote(bad.digest).state == "current"


def test_a_version_or_order_of_a_stranger_is_not_read(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    version = add(registry, tmp_path / "a")
    registry.promote(version.digest)
    other = AdapterRegistry(registry.root, trusted=STRANGER.public_key)
    for act in (other.versions, other.current):
        with pytest.raises(AdapterUntrusted, match="not of the trusted key"):
            act()
    assert len(verify_registry(other).problems) == 2
    reading = AdapterRegistry(registry.root, trusted=SIGNER.public_key)
    assert reading.current() == registry.current()
    with pytest.raises(AdapterError, match="for reading alone"):
        reading.promote(version.digest)


def test_garbage_is_collected_and_nothing_else(registry: AdapterRegistry, tmp_path: Path) -> None:
    versions = [add(registry, tmp_path / str(n), n) for n in (1, 2, 3)]
    registry.promote(versions[0].digest)
    registry.promote(versions[1].digest)
    assert registry.collect().blobs == 0
    for digest in (versions[0].digest, versions[1].digest):
        with pytest.raises(AdapterError, match="is in use"):
            registry.remove(digest)
    registry.remove(versions[2].digest)
    left = registry.root / "blobs" / "aa" / ".left-over"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half a file")
    (registry.root / "versions" / ".tmp").write_bytes(b"x")
    (registry.root / "blobs" / "link").symlink_to("/etc")
    assert verify_registry(registry).leftovers == 6
    found = registry.collect()
    assert (found.blobs, found.strangers) == (3, 3)  # the configuration is shared with others
    report = verify_registry(registry)
    assert (report.holds, report.leftovers, report.versions) == (True, 0, 2)
    with pytest.raises(AdapterError, match="There is no adapter"):
        registry.get(versions[2].digest)


def test_what_others_may_read_is_refused_and_what_is_made_is_private(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    registry.promote(add(registry, tmp_path / "a").digest)
    for path in [registry.root, *registry.root.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path.name


def test_a_folder_that_is_no_registry_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="holds no adapter registry"):
        AdapterRegistry(tmp_path / "nothing", trusted=SIGNER.public_key)
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(InvalidValue, match="without a key"):
        AdapterRegistry(tmp_path / "nothing")
    registry = open_registry(tmp_path / "registry")
    rewrite(registry.root / "registry.json", {"schema": 2})
    with pytest.raises(FleetError, match="schema 2"):
        open_registry(tmp_path / "registry")


def test_an_export_is_what_peft_and_the_device_read(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    version = add(registry, tmp_path / "a")
    export_version(registry, version.digest, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == version.manifest_bytes
    exported, original = (load_file(tmp_path / name / WEIGHTS) for name in ("out", "a"))
    assert exported.keys() == original.keys()
    assert all((exported[key] == original[key]).all() for key in original)
    with pytest.raises(RunFolderExists):
        export_version(registry, version.digest, tmp_path / "out")
    blob = version.facts.file(WEIGHTS).sha256
    path = registry.root / "blobs" / blob[:2] / blob
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(AdapterCorrupt, match="is damaged"):
        export_version(registry, version.digest, tmp_path / "second")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "out", "registry"]


def test_a_finished_run_becomes_a_version(registry: AdapterRegistry, tmp_path: Path) -> None:
    run = tmp_path / "quickstart"
    weights = write_folder(run / "adapter")
    report = report_about(weights, "inconclusive")
    (run / REPORT).write_text(json.dumps(report))
    (run / REPORT_SIGNATURE).write_text(json.dumps(sign_report(report, STRANGER).to_dict()))
    version = add_run(registry, run)
    assert version.facts.name == "quickstart"
    assert version.facts.audit is not None
    assert version.facts.audit.signed_by == STRANGER.public_key
    assert (version.facts.base_digest, version.facts.plan_digest) == (BASE, PLAN)
    assert add_run(registry, run).digest == version.digest
    (run / "adapter" / RUN_MANIFEST).unlink()
    with pytest.raises(AdapterCorrupt, match="missing or damaged"):
        add_run(registry, run)


def test_a_server_opens_its_registry_with_its_own_keys(tmp_path: Path) -> None:
    from server.home import ServerConfig, ServerHome
    from shared.sealingkeys import rotate_key_file

    home = ServerHome.create(tmp_path / "server", ServerConfig(name="test"))
    registry = server_registry(home)
    version = add(registry, tmp_path / "a")
    assert version.signature.public_key == registry.trusted
    rotate_key_file(home.keys / "sealing.keys")
    home.check_modes()
    assert server_registry(home).reseal() == 4
    sealed = [p for p in (home.adapters / "blobs").rglob("*") if p.is_file()]
    assert all(path.name.endswith(".sealed") for path in sealed)
    assert server_registry(home).read(version.digest, 0, 5) == b'{\n  "'


def test_the_stack_of_rollbacks_has_no_cycles(registry: AdapterRegistry, tmp_path: Path) -> None:
    digests = [add(registry, tmp_path / str(n), n).digest for n in (1, 2, 3)]
    for step in (0, 1, 0, 2, 1):
        registry.promote(digests[step])
    stack = stack_of(registry.orders())
    assert len(stack) == len(set(stack))
    while len(stack_of(registry.orders())) > 1:
        registry.rollback()
    assert verify_registry(registry).holds
