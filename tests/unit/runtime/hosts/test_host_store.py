"""What another machine keeps of what was sent to it."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil

import pytest

from runtime.artifact import FileRecord
from runtime.errors import HostError
from runtime.hosts.store import LOCK, WHOLE, Store

DATA = bytes(range(256)) * 40
SHA256 = hashlib.sha256(DATA).hexdigest()
DIGEST = "ab" * 32


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "kept", DIGEST)


def put(store, name, data=DATA, sha256=SHA256):
    with store.receiving(name, len(data)) as file:
        file.write(data)
    return store.finish(name, sha256)


def test_a_file_that_came_whole_is_there(store):
    assert not store.has("onnx/model.onnx", len(DATA), SHA256)
    assert put(store, "onnx/model.onnx")
    assert store.path("onnx/model.onnx").read_bytes() == DATA
    assert store.has("onnx/model.onnx", len(DATA), SHA256)
    assert not store.has("onnx/model.onnx", len(DATA) - 1, SHA256)
    assert not store.has("onnx/model.onnx", len(DATA), "0" * 64)


def test_half_a_file_goes_on(store):
    with store.receiving("a", len(DATA)) as file:
        file.write(DATA[:100])
    assert not store.has("a", len(DATA), SHA256)
    with store.receiving("a", len(DATA)) as file:
        assert file.tell() == 100
        file.write(DATA[100:])
    assert store.finish("a", SHA256)


def test_more_than_all_begins_anew(store):
    with store.receiving("a", len(DATA)) as file:
        file.write(DATA + b"more")
    with store.receiving("a", len(DATA)) as file:
        assert file.tell() == 0
        file.write(DATA)
    assert store.finish("a", SHA256)


def test_other_bytes_are_thrown_away(store):
    assert not put(store, "a", DATA[:-1] + b"?")
    assert [path.name for path in store.directory.iterdir()] == []


def test_a_file_that_was_touched_is_read_again(store):
    put(store, "a")
    path = store.path("a")
    path.write_bytes(DATA[:-1] + b"?")
    os.utime(path, ns=(1, 1))
    assert not store.has("a", len(DATA), SHA256)
    path.write_bytes(DATA)
    assert store.has("a", len(DATA), SHA256)


def test_a_known_file_is_not_read(store, monkeypatch):
    put(store, "a")
    monkeypatch.setattr("runtime.hosts.store.sha256_of", lambda _path: pytest.fail("read"))
    assert store.has("a", len(DATA), SHA256)


@pytest.mark.parametrize("listed", ["no JSON", "[]", '{"a": 1}'])
def test_a_damaged_list_costs_a_reading_only(store, listed):
    put(store, "a")
    (store.directory / WHOLE).write_text(listed)
    assert store.has("a", len(DATA), SHA256)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../a", "b/../../a", WHOLE, f"./{WHOLE}", LOCK])
def test_names_that_lead_elsewhere(store, name):
    with pytest.raises(HostError, match="is not the name of an artifact's file"):
        store.path(name)


def test_a_digest_is_one(tmp_path):
    with pytest.raises(HostError, match=r"'\.\./x' is not a SHA-256"):
        Store(tmp_path, "../x")


def test_no_room(store, monkeypatch):
    files = {"a": FileRecord(20_000_000, SHA256), "b": FileRecord(30_000_000, SHA256)}
    with store.receiving("b", 30_000_000) as file:
        file.write(bytes(10_000_000))
    free = shutil.disk_usage("/")
    monkeypatch.setattr("runtime.hosts.store.shutil.disk_usage", lambda _path: free._replace(free=50_000_000))
    with pytest.raises(HostError, match=r"50\.0 MB free, 56\.8 MB needed; free some, or name another dir"):
        store.refuse_no_room(files)
    monkeypatch.setattr("runtime.hosts.store.shutil.disk_usage", lambda _path: free._replace(free=57_000_000))
    store.refuse_no_room(files)


def test_what_is_there_needs_no_room(store, monkeypatch):
    put(store, "a")
    full = shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr("runtime.hosts.store.shutil.disk_usage", lambda _path: full)
    assert store.refuse_no_room({"a": FileRecord(len(DATA), SHA256)}) is None
    with pytest.raises(HostError, match=r"0\.0 MB free"):
        store.refuse_no_room({"b": FileRecord(len(DATA), SHA256)})


def test_two_do_not_use_the_same_artifact(store):
    with store.lock(), pytest.raises(HostError, match="another packlight sends or measures this artifact there"):
        store.lock()
    store.lock().close()


def test_a_filesystem_without_locks(store, monkeypatch):
    def flock(_file, _how):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with store.lock() as file:
        assert not file.closed


def test_it_is_forgotten(store):
    put(store, "a")
    store.forget()
    assert not store.directory.exists()
    store.forget()
