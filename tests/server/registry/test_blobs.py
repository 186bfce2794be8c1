"""Blobs, plain and sealed: whole or not there, and every change noticed."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from server.registry.blobs import PIECE, SEALED, BlobStore
from shared.errors import AdapterCorrupt, AdapterError, OutOfDisk
from shared.sealing import Sealer, SealingKey, sealed_key_id
from tests.adapterkit import add, open_registry

OLD, NEW = SealingKey(b"\x01" * 32), SealingKey(b"\x02" * 32)
TEXT = os.urandom(3 * PIECE + 17)


def put(store: BlobStore, data: bytes = TEXT) -> str:
    return store.put(io.BytesIO(data), limit=len(data))[0]


def only_file(folder: Path) -> Path:
    (path,) = (p for p in folder.rglob("*") if p.is_file())
    return path


@pytest.mark.parametrize("sealer", [None, Sealer([OLD])])
def test_a_blob_comes_back_in_pieces(tmp_path: Path, sealer: Sealer | None) -> None:
    store = BlobStore(tmp_path / "blobs", sealer)
    digest = put(store)
    store.check(digest, len(TEXT))
    with store.open(digest) as blob:
        assert blob.size == len(TEXT)
        assert b"".join(blob.pieces()) == TEXT
        assert blob.read(PIECE - 5, 10) == TEXT[PIECE - 5 : PIECE + 5]
    assert store.digests() == {digest}
    assert store.strangers() == []
    path = only_file(tmp_path)
    assert (path.suffix == SEALED) == (sealer is not None)
    assert (TEXT[:50] in path.read_bytes()) == (sealer is None)


def test_a_sealed_blob_notices_every_change(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", Sealer([OLD]))
    digest = put(store, TEXT[:1000])
    path = only_file(tmp_path)
    data = path.read_bytes()
    for changed in (data[:-1], data + b"x", b"", data[:40], data[:100] + b"?" + data[101:]):
        path.write_bytes(changed)
        with pytest.raises(AdapterCorrupt):
            store.check(digest, 1000)


def test_a_sealed_blob_does_not_open_in_the_place_of_another(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", Sealer([OLD]))
    one, two = put(store, b"one"), put(store, b"two")
    place = {d: tmp_path / "blobs" / d[:2] / (d + SEALED) for d in (one, two)}
    place[one].write_bytes(place[two].read_bytes())
    with pytest.raises(AdapterCorrupt, match="not what it is taken for"), store.open(one):
        pass


def test_without_its_key_a_blob_stays_closed(tmp_path: Path) -> None:
    digest = put(BlobStore(tmp_path / "blobs", Sealer([OLD])))
    with (
        pytest.raises(AdapterError, match="no sealing key"),
        BlobStore(tmp_path / "blobs", None).open(digest),
    ):
        pass
    with (
        pytest.raises(AdapterCorrupt, match="sealed with key"),
        BlobStore(tmp_path / "blobs", Sealer([NEW])).open(digest),
    ):
        pass


def test_resealing_brings_plain_and_old_blobs_to_the_newest_key(tmp_path: Path) -> None:
    plain = put(BlobStore(tmp_path / "blobs", None), b"plain")
    old = put(BlobStore(tmp_path / "blobs", Sealer([OLD])), b"old one")
    store = BlobStore(tmp_path / "blobs", Sealer([NEW, OLD]))
    with store.open(plain) as blob:
        assert blob.read(0, 9) == b"plain"
    assert store.reseal(plain, 5)
    assert store.reseal(old, 7)
    assert not store.reseal(old, 7)
    newest = BlobStore(tmp_path / "blobs", Sealer([NEW]))
    newest.check(plain, 5)
    newest.check(old, 7)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 2
    assert {sealed_key_id(io.BytesIO(p.read_bytes())) for p in files} == {NEW.key_id}
    assert not BlobStore(tmp_path / "blobs", None).reseal(old, 7)


def test_a_plain_copy_that_a_crash_left_beside_the_sealed_one_goes(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", Sealer([OLD]))
    digest = put(store, b"secret")
    (tmp_path / "blobs" / digest[:2] / digest).write_bytes(b"secret")
    assert store.reseal(digest, 6)
    assert only_file(tmp_path).suffix == SEALED


def test_a_damaged_blob_is_not_resealed(tmp_path: Path) -> None:
    digest = put(BlobStore(tmp_path / "blobs", None), b"plain")
    only_file(tmp_path).write_bytes(b"PLAIN")
    with pytest.raises(AdapterCorrupt):
        BlobStore(tmp_path / "blobs", Sealer([OLD])).reseal(digest, 5)
    assert only_file(tmp_path).read_bytes() == b"PLAIN"


class Changing(io.BytesIO):
    """A file that is another one when it is read again."""

    def seek(self, offset: int, whence: int = 0) -> int:
        self.getbuffer()[:1] = b"!"
        return super().seek(offset, whence)


@pytest.mark.parametrize("sealer", [None, Sealer([OLD])])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, sealer: Sealer | None
) -> None:
    store = BlobStore(tmp_path / "blobs", sealer)
    with pytest.raises(AdapterError, match="changed while it was read"):
        store.put(Changing(b"some text"), limit=100)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_file_that_is_longer_than_allowed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="more than 10 bytes"):
        BlobStore(tmp_path / "blobs", None).put(io.BytesIO(bytes(11)), limit=10)


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    store = BlobStore(tmp_path / "blobs", None)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutOfDisk):
        put(store, b"text")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_links_in_the_place_of_blobs_are_not_followed(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", None)
    digest = put(store, b"text")
    path = only_file(tmp_path)
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(AdapterCorrupt), store.open(digest):
        pass
    assert store.strangers() == [path]


def test_a_registry_reads_and_checks_sealed_files(tmp_path: Path) -> None:
    registry = open_registry(tmp_path / "registry", sealer=Sealer([OLD]))
    version = add(registry, tmp_path / "a")
    whole = registry.read(version.digest, 0, 1 << 20)
    plain = open_registry(tmp_path / "plain")
    assert plain.read(add(plain, tmp_path / "b").digest, 0, 1 << 20) == whole
