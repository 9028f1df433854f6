"""Nothing readable in etcd, nothing put in another's place."""

import os

import pytest

from control.etcd.sealed import BlobSeal
from control.store.aesgcm import KEY_BYTES, AesGcmSealer, Keys
from control.store.errors import BackendFailed
from control.store.sealing import PlainRing

OLD, NEW = (AesGcmSealer(name, os.urandom(KEY_BYTES), os.urandom) for name in ("old", "new"))


def test_a_blob_comes_back_also_under_an_older_key():
    key_id, sealed = BlobSeal(Keys([OLD]), "c1").seal("task", "t1", 5, b"secret")
    assert key_id == "old"
    assert b"secret" not in sealed
    assert BlobSeal(Keys([NEW, OLD]), "c1").unseal("task", "t1", 5, key_id, sealed) == b"secret"


@pytest.mark.parametrize(
    ("cluster", "kind", "id_", "version"),
    [("c2", "task", "t1", 5), ("c1", "node", "t1", 5), ("c1", "task", "t2", 5), ("c1", "task", "t1", 4)],
)
def test_it_fits_nowhere_else(cluster, kind, id_, version):
    key_id, sealed = BlobSeal(Keys([OLD]), "c1").seal("task", "t1", 5, b"secret")
    with pytest.raises(BackendFailed, match=f"the {kind} {id_} in etcd was changed by something that is not meshd"):
        BlobSeal(Keys([OLD]), cluster).unseal(kind, id_, version, key_id, sealed)


def test_keys_that_are_not_there():
    key_id, sealed = BlobSeal(Keys([OLD]), "c1").seal("task", "t1", 5, b"secret")
    with pytest.raises(
        BackendFailed, match='the task t1 in etcd is encrypted with key "old", which this manager does not'
    ):
        BlobSeal(Keys([NEW]), "c1").unseal("task", "t1", 5, key_id, sealed)
    with pytest.raises(BackendFailed, match="does not have: restore"):
        BlobSeal(PlainRing(), "c1").unseal("task", "t1", 5, key_id, sealed)


def test_what_was_written_plainly_is_read_only_if_the_ring_says_so():
    key_id, sealed = BlobSeal(PlainRing(), "c1").seal("task", "t1", 5, b"open")
    assert BlobSeal(Keys([NEW], plain=True), "c1").unseal("task", "t1", 5, key_id, sealed) == b"open"
    with pytest.raises(BackendFailed, match="the task t1 in etcd is not encrypted"):
        BlobSeal(Keys([NEW]), "c1").unseal("task", "t1", 5, key_id, sealed)
