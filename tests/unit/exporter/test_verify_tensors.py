from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest

from exporter.verify.tensors import dead_tensors
from runtime.artifact import open_artifact
from targets.gguf.reading import read_gguf_facts

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, tensors: dict[str, np.ndarray], kind: str) -> Path:
    writer = gguf.GGUFWriter(path, arch="llama")
    quant = gguf.GGMLQuantizationType[kind]
    for name, values in tensors.items():
        data = values if values.ndim == 1 else gguf.quants.quantize(values, quant)
        writer.add_tensor(name, data, raw_dtype=None if values.ndim == 1 else quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    late = np.zeros((4096, 64), np.float32)
    late[-1, -1] = 1.0  # past the first chunk
    whole = rng.normal(size=(8, 64)).astype(np.float32)
    return {"whole": whole, "late": late, "zero": np.zeros((8, 64), np.float32), "bias": np.zeros(64, np.float32)}


# Q4_0 and Q8_0 write a zero as scale 0, Q4_0's codes are not zero bytes.
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0", "Q4_1"])
def test_only_a_matrix_of_zeros_is_dead(tmp_path: Path, values: dict[str, np.ndarray], kind: str) -> None:
    path = write(tmp_path / "a.gguf", values, kind)
    healthy = write(tmp_path / "s.gguf", {"x": values["whole"]}, "F32")
    assert dead_tensors(open_artifact(path), read_gguf_facts(healthy, "s")) == ("zero",)


def test_a_source_that_has_them_too_is_not_a_fault(tmp_path: Path, values: dict[str, np.ndarray]) -> None:
    path = write(tmp_path / "a.gguf", values, "F32")
    assert dead_tensors(open_artifact(path), read_gguf_facts(path, "s")) == ()
