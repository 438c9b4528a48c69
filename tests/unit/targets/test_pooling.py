"""What a directory of sentence-transformers says of pooling, and the pooling itself on two tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.tiny_encoders import write_pooling

from runtime.errors import ModelError
from targets.pooling import Pooling, read_pooling

if TYPE_CHECKING:
    from pathlib import Path

STATES = np.array([[3.0, 0.0], [3.0, 8.0]], np.float32)


@pytest.mark.parametrize(
    ("mode", "normalize", "expected"),
    [
        ("mean", False, [3.0, 4.0]),
        ("mean", True, [0.6, 0.8]),
        ("cls", False, [3.0, 0.0]),
        ("cls", True, [1.0, 0.0]),
    ],
)
def test_pooling_by_hand(mode: str, normalize: bool, expected: list[float]) -> None:
    found = Pooling(mode, normalize)(STATES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_states_of_zero_stay_zero() -> None:
    np.testing.assert_array_equal(Pooling("mean", normalize=True)(np.zeros((2, 2), np.float32)), [0.0, 0.0])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_what_is_written_is_read(mode: str, normalize: bool, tmp_path: Path) -> None:
    write_pooling(tmp_path, mode, normalize=normalize)
    assert read_pooling(tmp_path) == Pooling(mode, normalize)


def test_a_directory_without_modules_has_none(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) is None


def test_a_pooling_folder_alone_is_enough(tmp_path: Path) -> None:
    write_pooling(tmp_path, "cls")
    (tmp_path / "modules.json").unlink()
    assert read_pooling(tmp_path) == Pooling("cls", normalize=False)


def test_the_mode_may_be_named_in_one_word(tmp_path: Path) -> None:
    write_pooling(tmp_path, "mean")
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    assert read_pooling(tmp_path) == Pooling("cls", normalize=True)


@pytest.mark.parametrize(
    "config",
    [
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": False},
        {"pooling_mode": "lasttoken"},
        ["mean"],
    ],
    ids=str,
)
def test_what_is_not_known_is_no_pooling(config: object, tmp_path: Path) -> None:
    write_pooling(tmp_path, "mean")
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert read_pooling(tmp_path) is None


def test_a_dense_layer_behind_it_is_no_pooling(tmp_path: Path) -> None:
    write_pooling(tmp_path, "mean")
    path = tmp_path / "modules.json"
    modules = json.loads(path.read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    path.write_text(json.dumps(modules))
    assert read_pooling(tmp_path) is None


def test_the_folder_is_never_outside(tmp_path: Path) -> None:
    write_pooling(tmp_path, "mean")
    inside = tmp_path / "model"
    inside.mkdir()
    modules = [{"path": "../1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (inside / "modules.json").write_text(json.dumps(modules))
    assert read_pooling(inside) is None
    write_pooling(inside, "cls")
    (inside / "modules.json").write_text(json.dumps(modules))
    assert read_pooling(inside) == Pooling("cls", normalize=False)


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json"])
def test_damaged_json_is_one_line(name: str, tmp_path: Path) -> None:
    write_pooling(tmp_path, "mean")
    (tmp_path / name).write_text("{")
    with pytest.raises(ModelError, match=name) as caught:
        read_pooling(tmp_path)
    assert "\n" not in str(caught.value)
