from __future__ import annotations

import subprocess
import sys

import pytest

from runtime import cap as cap_module
from runtime.cap import METHODS, capped, drop_file_cache, remove_stale
from runtime.errors import UserError

MB = 10**6
EAT = "import sys; data = bytearray(b'x') * int(sys.argv[1]); print('ate', len(data))"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is capped on Linux only")


def eat(cap, n_bytes):
    return subprocess.run(cap.command([sys.executable, "-c", EAT, str(n_bytes)]), capture_output=True, text=True)


@pytest.fixture(params=METHODS)
def method(request):
    try:
        with capped(64 * MB, [request.param]):
            pass
    except UserError as error:
        pytest.skip(str(error))
    return request.param


def test_under_the_cap_runs_and_over_it_does_not(method):
    with capped(80 * MB, [method]) as cap:
        assert eat(cap, 10 * MB).stdout.strip() == f"ate {10 * MB}"
        over = eat(cap, 120 * MB)
        assert over.returncode != 0
        assert "ate" not in over.stdout
        if cap.kills:
            assert over.returncode == -9
            assert cap.oom_kills() == 1
            assert cap.limit_hits() > 0
        else:
            assert "MemoryError" in over.stderr


def test_nothing_is_left_behind(method):
    with capped(64 * MB, [method]) as cap:
        eat(cap, 100 * MB)
        assert cap.directory is None or cap.directory.is_dir()
    assert cap.directory is None or not cap.directory.exists()


def test_groups_of_the_dead_are_removed_and_of_the_living_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f"packlight-{dead.pid}-0", "packlight-1-0", "packlight-mine", "other"):
        (tmp_path / name).mkdir()
    remove_stale(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "packlight-1-0", "packlight-mine"]


def test_no_method_at_all_says_why(monkeypatch):
    def refuse(method, n_bytes):
        raise OSError("not here")

    monkeypatch.setattr(cap_module, "_open", refuse)
    with (
        pytest.raises(UserError, match=r"cannot be capped on this host \(cgroup-v2: not here; .*rlimit-as"),
        capped(MB),
    ):
        pass


def test_dropping_the_cache_keeps_the_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    drop_file_cache(path)
    assert path.read_bytes() == b"abc"
