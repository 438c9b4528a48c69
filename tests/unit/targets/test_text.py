from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from runtime.errors import UserError
from targets.text import default_text, load_text

if TYPE_CHECKING:
    from pathlib import Path


def test_default_halves_cover_the_topics_without_overlap() -> None:
    from pydoc_data.topics import topics

    first, second = default_text("calibration"), default_text("evaluation")
    assert f"{first.text}\n\n{second.text}" == "\n\n".join(topics[name] for name in sorted(topics))
    assert 0.4 < len(first.text) / len(second.text) < 2.5
    assert first.sha256 == hashlib.sha256(first.text.encode()).hexdigest() != second.sha256
    assert load_text(None) == second
    assert "second half" in second.name


def test_a_users_file_is_taken_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("a\r\nbé\n".encode())
    text = load_text(path)
    assert (text.name, text.text) == (str(path), "a\r\nbé\n")
    assert text.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_bad_files_are_users_errors(tmp_path: Path) -> None:
    (tmp_path / "latin1").write_bytes(b"ab\xe9")
    with pytest.raises(UserError, match=r"latin1: is not UTF-8 \(byte 2\)"):
        load_text(tmp_path / "latin1")
    with pytest.raises(UserError, match="cannot be read"):
        load_text(tmp_path / "none")
