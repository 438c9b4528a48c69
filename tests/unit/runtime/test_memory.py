from __future__ import annotations

import mmap
import os
import subprocess
import sys

import pytest

from runtime import memory
from runtime.cap import drop_file_cache

STATUS = "Name:\tpython3\nVmPeak:\t  999999 kB\nVmHWM:\t  203456 kB\nVmRSS:\t  198000 kB\nRssAnon:\t   90000 kB\n"
SMAPS = """\
7f0000000000-7f0005c1a000 r--s 00000000 fe:00 4242                       /models/a b.gguf
Size:              94312 kB
Rss:               90000 kB
Pss:               90000 kB
VmFlags: rd mr me ms
7f0006000000-7f0006001000 r--s 05c1a000 fe:00 4242                       /models/a b.gguf
Rss:                   4 kB
7f0007000000-7f0008000000 rw-p 00000000 00:00 0
Rss:               16384 kB
7f0009000000-7f0009001000 r-xp 00000000 fe:00 17                         /usr/lib/libc.so.6
Rss:                 800 kB
"""
needs_proc = pytest.mark.skipif(not memory.PROC.exists(), reason="this system has no /proc")


def test_the_memory_at_hand_is_read_in_bytes(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:       100 kB\nMemAvailable:    42 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert memory.available_bytes() == 42 * 1024
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    assert memory.available_bytes() is None


def test_status_is_read_in_bytes():
    assert memory.parse_status(STATUS) == memory.Resident(203456 * 1024, 198000 * 1024, "VmHWM")
    assert memory.parse_status("VmRSS:\t 1 kB\n") is None


def test_smaps_sums_one_file_only():
    assert memory.parse_smaps(SMAPS, "/models/a b.gguf") == 90004 * 1024
    assert memory.parse_smaps(SMAPS, "/models/other.gguf") == 0


@needs_proc
def test_a_mapped_file_is_resident_once_it_is_read(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert sum(view[:: mmap.PAGESIZE]) == 0
        assert memory.mapped_bytes(path) == 1 << 20
    assert memory.mapped_bytes(path) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="mincore as Linux has it")
def test_what_the_page_cache_holds(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(1 << 20))
    assert memory.cached_bytes(path) == 1 << 20
    drop_file_cache(path)
    assert memory.cached_bytes(path) == 0
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        file.seek(8192)
        os.read(file.fileno(), 1)
        assert 0 < memory.cached_bytes(path) < 1 << 20
    (tmp_path / "empty").touch()
    assert memory.cached_bytes(tmp_path / "empty") == 0
    assert memory.cached_bytes(tmp_path / "none") is None


def test_of_a_file_of_somebody_else_it_is_not_known(monkeypatch, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(4096))
    monkeypatch.setattr(memory.os, "access", lambda _path, _mode: False)
    monkeypatch.setattr(memory.os, "geteuid", lambda: path.stat().st_uid + 1)
    assert memory.cached_bytes(path) is None


@needs_proc
def test_the_peak_of_a_child_does_not_start_at_its_parents_size():
    ballast = bytearray(b"x") * (150 << 20)
    code = "from runtime.memory import resident; r = resident(); print(r.peak_bytes, r.source)"
    peak, source = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert source == "VmHWM"
    assert int(peak) < 100 << 20 < len(ballast)


def test_without_proc_the_peak_is_getrusage(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROC", tmp_path)
    assert memory.resident().source == "ru_maxrss"
    assert memory.resident().peak_bytes > 5 << 20
    assert memory.anonymous_bytes() is None
    assert memory.mapped_bytes(tmp_path) is None


MAPS = """\
7f0000000000-7f0000100000 r--p 00001000 fe:00 42 /models/out/onnx/model_q4.onnx_data
7f0000200000-7f0000201000 rw-p 00000000 00:00 0 [heap]
7f0000300000-7f0000302000 r-xp 00000000 fe:00 7 /usr/lib/libc.so.6
7f0000400000-7f0000401000 rw-p 00000000 fe:00 43 /models/out/scratch file
7f0000500000-7f0000501000 r--p 00000000 fe:00 44 /models/outside
"""


def test_only_read_only_mappings_below_the_directory_are_found():
    assert memory.mappings_of(MAPS, "/models/out") == [(0x7F0000000000, 0x100000)]


def test_released_pages_are_no_longer_resident_and_come_back(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 16 * 64)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[at] for at in range(0, len(mapped), 4096)) == 0
        assert memory.mapped_bytes(path) == len(mapped)
        memory.release_mapped(tmp_path)
        assert memory.mapped_bytes(path) == 0
        assert mapped[4097] == 1


KINDS = "RssAnon:\t  100 kB\nRssFile:\t  200 kB\nRssShmem:\t   4 kB\n"


def test_what_backs_the_resident_bytes(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROC", tmp_path)
    assert memory.resident_kinds() is None
    (tmp_path / "status").write_text("VmRSS:\t 304 kB\n")
    assert memory.resident_kinds() is None
    (tmp_path / "status").write_text(KINDS)
    kinds = {"anonymous_bytes": 102_400, "file_bytes": 204_800, "shared_bytes": 4096}
    assert memory.resident_kinds() == kinds
    (tmp_path / "smaps_rollup").write_text("0-ff ---p 0 [rollup]\nRss:  304 kB\nPss:  150 kB\nPss_Anon: 100 kB\n")
    assert memory.resident_kinds() == kinds | {"proportional_bytes": 153_600}


@needs_proc
def test_this_process_has_memory_of_both_kinds():
    before = memory.resident_kinds()
    held = bytearray(b"x") * 30_000_000
    after = memory.resident_kinds()
    assert after["anonymous_bytes"] - before["anonymous_bytes"] > 25_000_000
    assert after["file_bytes"] > 0
    assert after["proportional_bytes"] >= after["anonymous_bytes"] * 0.5
    del held
