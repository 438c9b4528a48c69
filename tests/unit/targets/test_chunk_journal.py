"""A journal of chunks: what counts is what the file still has."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from runtime.artifact import record
from targets import chunk_journal
from targets.chunk_journal import NAME, DirectoryJournal, FileJournal, partial_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE, CHUNK = 4000, 100


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_journal, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(chunk_journal, "INTERVALS", 4)  # a sync behind every 1000 bytes


def data(position: int) -> np.ndarray:
    return np.random.default_rng(position).integers(0, 256, CHUNK, np.uint8)


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / NAME).read_text().splitlines()]


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    number = os.open(partial_of(tmp_path / "m"), os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


def opened(directory: Path, descriptor: int, made_of: str = "x", size: int = SIZE) -> FileJournal:
    journal = DirectoryJournal(directory).file(directory / "m", descriptor, made_of, size)
    os.truncate(descriptor, size)
    return journal


def write(journal: FileJournal, descriptor: int, positions: range) -> None:
    for position in positions:
        os.pwrite(descriptor, data(position).tobytes(), position)
        journal.wrote(position, data(position))


def kept(journal: FileJournal) -> set[int]:
    return {at for at in range(0, SIZE, CHUNK) if journal.knows(at, CHUNK) and journal.holds(at, CHUNK)}


def test_what_was_written_is_known_to_the_next(tmp_path: Path, descriptor: int) -> None:
    first = opened(tmp_path, descriptor)
    assert kept(first) == set()
    write(first, descriptor, range(0, 2500, CHUNK))
    first.close()
    second = opened(tmp_path, descriptor)
    assert kept(second) == set(range(0, 2500, CHUNK))
    assert not second.knows(0, CHUNK - 1)
    assert not second.knows(0, 0)
    second.close()
    assert [line["what"] for line in lines(tmp_path)] == ["begun", *["chunk"] * 25]


def test_the_file_is_synced_and_then_the_journal(
    tmp_path: Path, descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(chunk_journal, "_sync", lambda number: order.append(f"file {number == descriptor}"))
    monkeypatch.setattr(DirectoryJournal, "sync", lambda _: order.append("journal"))
    journal = opened(tmp_path, descriptor)
    for start in range(0, SIZE, 500):
        write(journal, descriptor, range(start, start + 500, CHUNK))
        time.sleep(0.02)
    journal.close()
    assert 2 <= len(order) // 2 <= 4
    assert order == ["file True", "journal"] * (len(order) // 2)


def test_what_is_soon_written_is_not_synced(tmp_path: Path, descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_journal, "LEAST_SECONDS", 60.0)
    monkeypatch.setattr(chunk_journal, "_sync", lambda _: pytest.fail("synced"))
    journal = opened(tmp_path, descriptor)
    write(journal, descriptor, range(0, SIZE, CHUNK))
    journal.close()
    assert len(kept(opened(tmp_path, descriptor))) == SIZE // CHUNK


def test_a_disk_that_does_not_keep_up_holds_the_writing_back(
    tmp_path: Path, descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, n_written = threading.Event(), 0
    monkeypatch.setattr(chunk_journal, "_sync", lambda _: go_on.wait(20))
    journal = opened(tmp_path, descriptor)

    def work() -> None:
        nonlocal n_written
        for position in range(0, SIZE, CHUNK):
            write(journal, descriptor, range(position, position + CHUNK, CHUNK))
            n_written += CHUNK

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(0.5)
    assert 3000 <= n_written < 3300  # one interval is being synced, two more are written
    go_on.set()
    thread.join()
    journal.close()
    assert n_written == SIZE


def test_a_disk_that_fails_is_told(tmp_path: Path, descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(chunk_journal, "_sync", failing)
    journal = opened(tmp_path, descriptor)

    def work() -> None:
        write(journal, descriptor, range(0, SIZE, CHUNK))
        journal.close()

    with pytest.raises(OSError, match="Input/output error"):
        work()


def test_bytes_that_changed_are_not_held(tmp_path: Path, descriptor: int) -> None:
    first = opened(tmp_path, descriptor)
    write(first, descriptor, range(0, SIZE, CHUNK))
    first.close()
    os.pwrite(descriptor, b"\0" * 3, 1050)
    assert kept(opened(tmp_path, descriptor)) == set(range(0, SIZE, CHUNK)) - {1000}


@pytest.mark.parametrize("change", ["made of", "size", "cut file", "torn line"])
def test_what_is_forgotten(change: str, tmp_path: Path, descriptor: int) -> None:
    first = opened(tmp_path, descriptor)
    write(first, descriptor, range(0, 2000, CHUNK))
    first.close()
    if change == "made of":
        second = opened(tmp_path, descriptor, made_of="y")
    elif change == "size":
        second = opened(tmp_path, descriptor, size=SIZE + 32)
    elif change == "cut file":
        os.truncate(descriptor, 3000)
        second = opened(tmp_path, descriptor)
    else:
        journal = tmp_path / NAME
        journal.write_bytes(journal.read_bytes()[:-1])
        second = opened(tmp_path, descriptor)
        assert kept(second) == set(range(0, 1900, CHUNK))
        return
    assert kept(second) == set()
    assert os.pread(descriptor, SIZE, 0) == b"\0" * SIZE


def test_a_line_that_says_nonsense_is_passed_over(tmp_path: Path, descriptor: int) -> None:
    opened(tmp_path, descriptor).close()
    with (tmp_path / NAME).open("a") as file:
        file.write(json.dumps({"what": "chunk", "file": "m", "at": "a", "bytes": 1, "crc": 2}) + "\n")
        file.write(json.dumps({"what": "chunk", "file": "m", "at": 0, "bytes": None, "crc": 2}) + "\n")
        file.write(json.dumps({"what": "chunk", "file": "m"}) + "\n")
        file.write(json.dumps({"what": "chunk", "file": "other", "at": 0, "bytes": CHUNK, "crc": 0}) + "\n")
    assert kept(opened(tmp_path, descriptor)) == set()


def test_a_whole_file(tmp_path: Path) -> None:
    path, journal = tmp_path / "m", DirectoryJournal(tmp_path)
    partial_of(path).write_bytes(b"weights")
    assert journal.is_whole(path) is None
    found = journal.finish(path)
    assert found == record(path)
    assert DirectoryJournal(tmp_path).is_whole(path) == found
    path.rename(partial_of(path))  # killed before the rename
    assert DirectoryJournal(tmp_path).is_whole(path) == found
    path.write_bytes(b"weightz")
    assert DirectoryJournal(tmp_path).is_whole(path) is None
    path.unlink()
    assert DirectoryJournal(tmp_path).is_whole(path) is None
