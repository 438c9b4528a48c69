"""The GGUF reader over damaged files: a ModelError or a model, in no time and no memory; nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import gguf
import pytest
from support.gguf_fields import build, seeds, string, strings
from support.gguf_fuzz import mutated

from runtime.errors import ModelError
from targets.gguf import reading
from targets.gguf.reading import read_gguf_facts, read_gguf_metadata

ROOT = Path(__file__).parents[4]
PAGE = 1 << 20


def fuzz(keep: Path, *arguments: str) -> list[str]:
    """Words of the last line of a run that found nothing."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "support.gguf_fuzz", "--keep", str(keep), *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert list(keep.iterdir()) == []
    return ran.stdout.split()


@pytest.mark.parametrize("number", range(len(seeds())))
def test_what_is_mutated_is_valid_and_gguf_py_reads_the_same(number: int, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(seeds()[number].encoded())
    reader = gguf.GGUFReader(path)
    facts = read_gguf_facts(path, "").tensors
    assert {tensor.name: (tensor.data_offset, tensor.n_bytes) for tensor in reader.tensors} == {
        name: (fact.offset, fact.n_bytes) for name, fact in facts.items()
    }
    keys = [entry.key for entry in read_gguf_metadata(path)]
    assert keys == [name for name in reader.fields if not name.startswith("GGUF.")]


def test_two_thousand_damaged_files(tmp_path: Path) -> None:
    _, cases, _, accepted, _, refused, _, ways = fuzz(tmp_path, "--cases", "2000", "--seed", "7")
    assert int(cases) == int(accepted) + int(refused) == 2000
    assert int(accepted) > 100  # else the damage stops the reader before it comes to anything
    assert int(ways) > 50


def test_what_an_export_makes_of_three_hundred_damaged_files(tmp_path: Path) -> None:
    _, _, _, accepted, _, refused, *_ = fuzz(tmp_path, "--cases", "300", "--seed", "3", "--plan")
    assert int(accepted) > 10
    assert int(refused) > 100


@pytest.mark.slow
def test_a_hundred_thousand_damaged_files(tmp_path: Path) -> None:
    _, cases, _, accepted, _, refused, *_ = fuzz(tmp_path, "--cases", "100000", "--seed", "1")
    assert int(cases) == int(accepted) + int(refused) == 100000


@pytest.mark.slow
def test_what_an_export_makes_of_ten_thousand_damaged_files(tmp_path: Path) -> None:
    _, cases, *_ = fuzz(tmp_path, "--cases", "10000", "--seed", "2", "--plan")
    assert int(cases) == 10000


def test_a_case_is_the_same_bytes_whenever_it_is_made() -> None:
    assert mutated(5, 17, seeds()) == mutated(5, 17, seeds()) != mutated(5, 18, seeds())


def test_the_run_tells_a_reader_that_allocates_what_a_file_claims(tmp_path: Path) -> None:
    """The harness itself: a reader that trusts a count is found, with its seed and case, and the file is kept."""
    trusting = """
import sys
from support import gguf_fuzz
real = gguf_fuzz.read_gguf_metadata
def trusting(path):
    raw = path.read_bytes()
    if int.from_bytes(raw[8:16], "little") < 1 << 40:
        bytes(int.from_bytes(raw[8:16], "little"))
    return real(path)
gguf_fuzz.read_gguf_metadata = trusting
sys.exit(gguf_fuzz.main())
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", trusting, "--keep", str(tmp_path), "--cases", "4000", "--seed", "1"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 1
    assert "MemoryError" in ran.stdout
    kept = next(tmp_path.glob("seed-1-case-*.gguf"))
    number = int(kept.stem.rsplit("-", 1)[1])
    assert f"seed 1, case {number}, kept as {kept}" in ran.stdout
    assert kept.read_bytes() == mutated(1, number, seeds())


def peak_of_reading(path: Path) -> int:
    """Most bytes that Python has allocated at once."""
    read_gguf_metadata(path)
    tracemalloc.start()
    try:
        read_gguf_metadata(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [0, 1, 7, 11, 12])
def test_an_array_of_numbers_takes_its_own_size(kind: int, tmp_path: Path) -> None:
    size = {11: 8, 12: 8}.get(kind, 1)
    file = build([string("general.architecture", "x")], [("t", [1], 0)])
    entry = string("many", bytes(4 * PAGE))
    entry[2].value, entry[3].value = 9, kind
    entry[3].layout = "<I"
    entry.insert(4, type(entry[3])("integer", "<Q", 4 * PAGE // size))
    file.values.append(entry)
    file.head[3].value = 2
    path = tmp_path / "x.gguf"
    path.write_bytes(file.encoded())
    assert len(read_gguf_metadata(path)[1].value) == 4 * PAGE // size
    assert peak_of_reading(path) < 1.1 * path.stat().st_size


def test_an_array_of_short_texts_takes_half_more_than_its_size(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(build([strings("many", ["ab"] * 60_000)], [("t", [1], 0)]).encoded())
    assert list(read_gguf_metadata(path)[0].value[:2]) == ["ab", "ab"]
    assert peak_of_reading(path) < 1.6 * path.stat().st_size


LIMITS = {
    "MAX_HEADER": "has a header of more than 300 bytes; no model has one",
    "MAX_KEYS": "claims 1 tensors and 2 keys, more than 131072 and 1; no model has so many",
    "MAX_TENSORS": "claims 1 tensors and 2 keys, more than 0 and 65536; no model has so many",
    "MAX_TEXT": "has a string of 200 bytes at byte",
    "MAX_NAME": "has a string of 4 bytes at byte 24, more than 3",
}


@pytest.mark.parametrize("limit", LIMITS)
def test_what_no_model_has_is_refused_in_a_line(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(build([string("long", "x" * 200), strings("many", ["y" * 90])], [("t", [1], 0)]).encoded())
    read_gguf_facts(path, "")
    value = {"MAX_HEADER": 300, "MAX_KEYS": 1, "MAX_TENSORS": 0, "MAX_TEXT": 199, "MAX_NAME": 3}[limit]
    monkeypatch.setattr(reading, limit, value)
    with pytest.raises(ModelError) as caught:
        read_gguf_facts(path, "")
    assert LIMITS[limit] in str(caught.value)
