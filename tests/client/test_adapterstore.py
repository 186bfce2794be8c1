"""A device's adapters against a server, a network and a disk that lie."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from client.adapterrules import AdapterPolicy
from client.adapterstore import AdapterStore
from server.registry import AdapterRegistry, AdapterVersion
from shared.crypto import Signature
from shared.errors import (
    AdapterCorrupt,
    AdapterError,
    AdapterIncompatible,
    AdapterUntrusted,
    FleetError,
    InvalidValue,
    OutOfDisk,
)
from shared.manifest import (
    PEFT_CONFIG,
    WEIGHTS,
    AdapterManifest,
    FileEntry,
    sign_manifest,
)
from tests.adapterkit import BASE, SIGNER, STRANGER, add, files_of, open_registry
from tests.client.storeworker import install_for_ever

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> AdapterRegistry:
    """A registry with three versions that were promoted, and a rollback to the second."""
    root = tmp_path_factory.mktemp("server")
    registry = open_registry(root / "registry")
    for seed in (1, 2, 3):
        registry.promote(add(registry, root / str(seed), seed).digest)
    registry.rollback()
    return registry


def by_age(registry: AdapterRegistry) -> list[AdapterVersion]:
    """Return the versions, oldest first."""
    return list(registry.versions())[::-1]


def new_store(folder: Path, **more: object) -> AdapterStore:
    options: dict[str, object] = {"trusted_key": SIGNER.public_key, "base_digest": BASE, **more}
    return AdapterStore(folder, **options)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return new_store(tmp_path / "adapters")


def install(
    store: AdapterStore,
    registry: AdapterRegistry,
    version: AdapterVersion,
    *,
    order: int | None = None,
    again: bool = False,
) -> str:
    """Install a version, with one of the registry's orders if asked for."""
    signed = None if order is None else registry.orders()[order - 1]
    return store.install(
        version.manifest_bytes,
        version.signature,
        files_of(registry, version),
        order=None if signed is None else signed.order.to_bytes(),
        order_signature=None if signed is None else signed.signature,
        again=again,
    ).digest


def forged(version: AdapterVersion, files: Files) -> tuple[bytes, Signature]:
    """Sign a manifest of other files, as a server that was taken over would."""
    entries = tuple(
        FileEntry(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in sorted(files.items())
    )
    manifest = replace(version.facts, files=entries)
    return manifest.to_bytes(), sign_manifest(manifest, SIGNER)


def test_a_verified_version_is_in_use_and_loads_as_it_was_trained(
    store: AdapterStore, registry: AdapterRegistry, tmp_path: Path
) -> None:
    version = by_age(registry)[0]
    assert store.current() is None
    offer = store.examine(version.manifest_bytes, version.signature)
    assert (offer.installed, offer.size) == (False, version.facts.size)
    install(store, registry, version)
    current = store.current()
    assert current is not None
    assert current.digest == version.digest
    loaded = store.load(version.digest)
    (tmp_path / WEIGHTS).write_bytes(files_of(registry, version)[WEIGHTS])
    truth = load_file(tmp_path / WEIGHTS)
    assert loaded.factors.keys() == truth.keys()
    assert all(np.array_equal(loaded.factors[name], truth[name]) for name in truth)
    assert (loaded.terms.r, loaded.terms.lora_alpha) == (2, 4.0)
    assert store.examine(version.manifest_bytes, version.signature).installed


def test_a_whole_download_may_be_resumed_and_is_cut_into_files(
    store: AdapterStore, registry: AdapterRegistry
) -> None:
    version = by_age(registry)[0]
    offer = store.examine(version.manifest_bytes, version.signature)
    path = store.incoming(offer.digest)
    while (have := path.stat().st_size if path.exists() else 0) < offer.size:
        with path.open("ab") as stream:
            stream.write(registry.read(offer.digest, have, 1000))
    assert store.install(version.manifest_bytes, version.signature).digest == version.digest
    assert list((store.folder / "incoming").iterdir()) == []
    assert store.load(version.digest).factors


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b"!" + d[1:]])
def test_a_download_that_is_another_one_is_refused_and_cleared(
    store: AdapterStore, registry: AdapterRegistry, change: Callable[[bytes], bytes]
) -> None:
    version = by_age(registry)[0]
    path = store.incoming(version.digest)
    path.write_bytes(change(registry.read(version.digest, 0, 1 << 20)))
    with pytest.raises(AdapterCorrupt):
        store.install(version.manifest_bytes, version.signature)
    assert not path.exists()
    assert store.current() is None


def test_orders_are_followed_and_downgrades_are_not(
    store: AdapterStore, registry: AdapterRegistry
) -> None:
    one, two, three = by_age(registry)
    install(store, registry, one, order=1)
    install(store, registry, two, order=2)
    for version, order in ((one, None), (one, 1), (three, None), (three, 2)):
        with pytest.raises(AdapterUntrusted):
            install(store, registry, version, order=order)
    install(store, registry, three, order=3)
    with pytest.raises(AdapterUntrusted, match="not newer"):
        install(store, registry, two, order=2)
    assert install(store, registry, two, order=4) == two.digest  # the signed rollback
    with pytest.raises(AdapterUntrusted, match="not newer"):
        install(store, registry, three, order=3)
    assert store.candidates() == (two.digest, three.digest)
    assert len(store.refusals()) == 6


def test_without_orders_an_older_version_is_refused(
    store: AdapterStore, registry: AdapterRegistry
) -> None:
    one, two, _ = by_age(registry)
    install(store, registry, two)
    with pytest.raises(AdapterUntrusted, match="sequence=1, expected above 2"):
        install(store, registry, one)
    assert store.refusals()[-1].digest == one.digest


def test_an_unsigned_order_or_one_of_a_stranger_is_refused(
    store: AdapterStore, registry: AdapterRegistry
) -> None:
    version = by_age(registry)[1]
    signed = registry.orders()[-1]
    fake = STRANGER.sign(signed.signature.domain, signed.order.hash)
    for signature in (None, fake, version.signature):
        with pytest.raises(AdapterUntrusted):
            store.examine(
                version.manifest_bytes,
                version.signature,
                order=signed.order.to_bytes(),
                order_signature=signature,
            )


def test_only_the_pinned_key_the_own_base_and_a_good_verdict_get_in(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    version = by_age(registry)[0]
    stores = {
        "not of the trusted key": new_store(tmp_path / "a", trusted_key=STRANGER.public_key),
        "base=babababababa": new_store(tmp_path / "b", base_digest="cc" * 32),
        "audit verdict=consistent": new_store(
            tmp_path / "c", policy=AdapterPolicy(verdicts=frozenset({"inconclusive"}))
        ),
    }
    for reason, store in stores.items():
        with pytest.raises(AdapterUntrusted, match=reason):
            install(store, registry, version)
        assert store.current() is None
        assert reason in store.refusals()[0].reason
        assert not (store.folder / "versions").exists()


def test_an_adapter_that_got_in_under_other_rules_is_not_loaded(
    store: AdapterStore, registry: AdapterRegistry
) -> None:
    version = by_age(registry)[0]
    install(store, registry, version)
    for stricter in (
        new_store(store.folder, trusted_key=STRANGER.public_key),
        new_store(store.folder, base_digest="cc" * 32),
        new_store(store.folder, policy=AdapterPolicy(audit_key="00" * 32)),
    ):
        with pytest.raises(AdapterUntrusted):
            stricter.load(version.digest)


HOSTILE: dict[str, Callable[[Files], Files]] = {
    "no weights file": lambda f: {**f, WEIGHTS: b"PK\x03\x04" + bytes(100)},
    "a pickle": lambda f: {**f, WEIGHTS: b"\x80\x04\x95" + bytes(100)},
    "cut": lambda f: {**f, WEIGHTS: f[WEIGHTS][:-4]},
    "longer": lambda f: {**f, WEIGHTS: f[WEIGHTS] + bytes(4)},
    "no numbers": lambda f: {**f, WEIGHTS: f[WEIGHTS][:-4] + b"\x00\x00\xc0\x7f"},
    "infinite": lambda f: {**f, WEIGHTS: f[WEIGHTS][:-4] + b"\x00\x00\x80\xff"},
    "another rank": lambda f: {**f, PEFT_CONFIG: f[PEFT_CONFIG].replace(b'"r": 2', b'"r": 3')},
    "no settings": lambda f: {**f, PEFT_CONFIG: b"null"},
    "other tensors": lambda f: {**f, WEIGHTS: save({"lm_head": np.ones((2, 2), np.float32)})},
    "tensors in double": lambda f: {**f, WEIGHTS: save({"x": np.ones((2, 2), np.float64)})},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_signed_adapter_that_is_hostile_is_refused_before_it_is_in_use(
    store: AdapterStore, registry: AdapterRegistry, name: str
) -> None:
    one, two, _ = by_age(registry)
    install(store, registry, one)
    files = HOSTILE[name](files_of(registry, two))
    manifest, signature = forged(two, files)
    with pytest.raises((AdapterCorrupt, AdapterIncompatible)):
        store.install(manifest, signature, files)
    assert store.candidates() == (one.digest,)
    assert store.load(one.digest).factors
    assert [p.name for p in (store.folder / "versions").iterdir()] == [one.digest]


@given(st.data())
@settings(max_examples=60)
def test_whatever_is_changed_in_files_or_manifest_is_refused(
    registry: AdapterRegistry, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    version = by_age(registry)[0]
    store = new_store(tmp_path_factory.mktemp("adapters"))
    files = files_of(registry, version)
    manifest = version.manifest_bytes
    target = data.draw(st.sampled_from([*files, "manifest"]))
    original = manifest if target == "manifest" else files[target]
    at = data.draw(st.integers(0, len(original) - 1))
    changed = original[:at] + bytes([original[at] ^ data.draw(st.integers(1, 255))])
    changed += original[at + 1 :] if data.draw(st.booleans()) else b""
    if target == "manifest":
        manifest = changed
    else:
        files[target] = changed
    if changed == original:
        return
    with pytest.raises(AdapterError):
        store.install(manifest, version.signature, files)
    assert store.current() is None


def test_a_missing_file_a_link_and_a_pipe_are_refused(
    store: AdapterStore, registry: AdapterRegistry, tmp_path: Path
) -> None:
    version = by_age(registry)[0]
    files = files_of(registry, version)
    (tmp_path / "target").write_bytes(files[WEIGHTS])
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    sources: list[dict[str, bytes | Path]] = [
        {k: v for k, v in files.items() if k != WEIGHTS},
        {**files, WEIGHTS: tmp_path / "link"},
        {**files, WEIGHTS: tmp_path / "pipe"},
        {**files, WEIGHTS: tmp_path / "nothing"},
        {**files, WEIGHTS: tmp_path},
    ]
    for source in sources:
        with pytest.raises(AdapterCorrupt):
            store.install(version.manifest_bytes, version.signature, source)
    store.install(
        version.manifest_bytes, version.signature, {**files, WEIGHTS: tmp_path / "target"}
    )


def test_a_manifest_larger_than_allowed_fetches_nothing(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    version = by_age(registry)[0]
    store = new_store(tmp_path / "a", policy=AdapterPolicy(max_bytes=100))
    with pytest.raises(AdapterUntrusted, match="expected at most 100"):
        store.examine(version.manifest_bytes, version.signature)
    with pytest.raises(AdapterCorrupt):
        store.examine(b" " * (1 << 20), version.signature)


def test_changes_on_the_devices_own_disk_are_noticed_when_it_is_loaded(
    store: AdapterStore, registry: AdapterRegistry
) -> None:
    version = by_age(registry)[0]
    install(store, registry, version)
    folder = store.folder / "versions" / version.digest
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for damaged in (data[:-1], b"", data.replace(b"0", b"1", 1)):
            path.write_bytes(damaged)
            with pytest.raises(AdapterError):
                store.load(version.digest)
        path.unlink()
        with pytest.raises(AdapterCorrupt):
            store.load(version.digest)
        (folder.parent / "elsewhere").write_bytes(data)
        path.symlink_to(folder.parent / "elsewhere")
        with pytest.raises(AdapterCorrupt):
            store.load(version.digest)
        path.unlink()
        path.write_bytes(data)
    assert store.load(version.digest).factors
    folder.rename(store.folder / "moved")
    folder.symlink_to(store.folder / "moved")
    with pytest.raises(AdapterCorrupt, match="is a link"):
        store.load(version.digest)
    # What is damaged is repaired by installing it again.
    install(store, registry, version)
    assert store.load(version.digest).factors


def test_a_version_in_the_folder_of_another_is_not_loaded(
    store: AdapterStore, registry: AdapterRegistry
) -> None:
    one, two, _ = by_age(registry)
    install(store, registry, one)
    install(store, registry, two)
    versions = store.folder / "versions"
    shutil.rmtree(versions / two.digest)
    shutil.copytree(versions / one.digest, versions / two.digest)
    with pytest.raises(AdapterCorrupt, match="its folder holds"):
        store.load(two.digest)


def test_the_one_before_is_kept_and_older_ones_go(
    store: AdapterStore, registry: AdapterRegistry
) -> None:
    one, two, three = by_age(registry)
    for version in (one, two, three):
        install(store, registry, version)
    assert store.candidates() == (three.digest, two.digest)
    kept = {path.name for path in (store.folder / "versions").iterdir()}
    assert kept == {three.digest, two.digest}


def test_the_owner_goes_back_and_stays_there(
    store: AdapterStore, registry: AdapterRegistry
) -> None:
    one, two, three = by_age(registry)
    install(store, registry, one)
    with pytest.raises(AdapterUntrusted, match="no adapter to go back to"):
        store.rollback()
    install(store, registry, two)
    assert store.rollback().digest == one.digest
    with pytest.raises(AdapterUntrusted, match="rolled back"):
        install(store, registry, two)
    assert install(store, registry, two, again=True, order=2) == two.digest
    assert install(store, registry, three, order=3) == three.digest


def test_nothing_goes_back_to_an_adapter_that_is_damaged(
    store: AdapterStore, registry: AdapterRegistry
) -> None:
    one, two, _ = by_age(registry)
    install(store, registry, one)
    install(store, registry, two)
    (store.folder / "versions" / one.digest / WEIGHTS).write_bytes(b"")
    with pytest.raises(AdapterCorrupt):
        store.rollback()
    assert store.candidates()[0] == two.digest


def test_everything_is_private(store: AdapterStore, registry: AdapterRegistry) -> None:
    install(store, registry, by_age(registry)[0])
    for path in [store.folder, *store.folder.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path.name


def test_a_folder_that_others_may_open_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open" / "file").touch()
    with pytest.raises(FleetError, match="expected 700"):
        new_store(tmp_path / "open")


@pytest.mark.parametrize("change", [{"trusted_key": "x"}, {"base_digest": "AB" * 32}])
def test_keys_and_digests_must_be_some(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(InvalidValue, match="64 lower-case"):
        new_store(tmp_path / "a", **change)


@pytest.mark.parametrize("digest", ["../x", "", "/etc/passwd", "A" * 64])
def test_no_download_leads_out_of_the_folder(store: AdapterStore, digest: str) -> None:
    with pytest.raises(InvalidValue):
        store.incoming(digest)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 9000, " " * 200_000])
def test_a_damaged_memory_stops_everything(
    store: AdapterStore, registry: AdapterRegistry, text: str
) -> None:
    install(store, registry, by_age(registry)[0])
    (store.folder / "state.json").write_text(text)
    for act in (store.current, store.candidates, store.rollback):
        with pytest.raises(AdapterCorrupt):
            act()
    with pytest.raises(AdapterCorrupt):
        install(store, registry, by_age(registry)[1])


def test_a_full_disk_leaves_the_adapter_that_was_in_use(
    store: AdapterStore, registry: AdapterRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    one, two, _ = by_age(registry)
    install(store, registry, one)
    fsync, calls, limit = os.fsync, [0], [0]

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == limit[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    files = files_of(registry, two)
    for number in range(1, 12):
        calls[0], limit[0] = 0, number
        monkeypatch.setattr(os, "fsync", full)
        try:
            store.install(two.manifest_bytes, two.signature, files)
        except OutOfDisk:
            monkeypatch.undo()
            assert store.load(store.candidates()[0]).factors
        else:
            break
    monkeypatch.undo()
    assert store.candidates()[0] == two.digest
    assert limit[0] > 6


@pytest.mark.slow
def test_a_device_that_is_killed_while_installing_has_one_whole_adapter(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    offers = []
    for n, version in enumerate(by_age(registry)):
        folder = tmp_path / f"offer-{n}"
        folder.mkdir()
        for name, data in files_of(registry, version).items():
            (folder / name).write_bytes(data)
        (folder / "manifest").write_bytes(version.manifest_bytes)
        (folder / "signature").write_text(json.dumps(version.signature.to_dict()))
        offers.append(folder)
    folder = tmp_path / "adapters"
    rng = random.Random(9)
    context = multiprocessing.get_context("spawn")
    for kill in range(15):
        ready = tmp_path / f"ready-{kill}"
        process = context.Process(
            target=install_for_ever, args=(folder, offers, SIGNER.public_key, BASE, ready)
        )
        process.start()
        try:
            deadline = time.monotonic() + 60
            while not ready.exists():
                assert process.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.1))
        finally:
            process.kill()
            process.join()
        store = new_store(folder)
        for digest in store.candidates():
            assert store.load(digest).factors
    # The next installation removes what the kills left: there is one, whatever is in use.
    store = new_store(folder)
    (folder / "state.json").unlink(missing_ok=True)
    for version in by_age(registry):
        install(store, registry, version)
    assert set(os.listdir(folder / "versions")) == set(store.candidates())


def test_a_manifest_type_is_what_is_returned(
    store: AdapterStore, registry: AdapterRegistry
) -> None:
    version = by_age(registry)[0]
    offer = store.examine(version.manifest_bytes, version.signature)
    assert isinstance(offer.manifest, AdapterManifest)
    assert [entry.name for entry in offer.files] == sorted(files_of(registry, version))
