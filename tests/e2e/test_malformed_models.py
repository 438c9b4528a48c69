"""Malformed inputs through the command line: each one clear line, exit status 2, nothing written, no traceback."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def truncated(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def lying_header(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + path.read_bytes()[8:])


def nan_weight(directory: Path) -> None:
    path = directory / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-2:] = struct.pack("<H", 0x7FC0)
    path.write_bytes(raw)


def missing_shard(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def pickled(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def no_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def broken_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text('{"model": ')


def unknown_pre_tokenizer(directory: Path) -> None:
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps(content))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "config.json"),
    "config is not JSON": (lambda d: (d / "config.json").write_text("{,"), "config.json"),
    "unknown architecture": (lambda d: edit_config(d, architectures=["LlamoForCausalLM"]), "LlamaForCausalLM"),
    "shape disagrees": (lambda d: edit_config(d, intermediate_size=96), "config.json says"),
    "no layers": (lambda d: edit_config(d, num_hidden_layers=None), "num_hidden_layers"),
    "another activation": (lambda d: edit_config(d, hidden_act="relu"), "hidden_act"),
    "unknown rope": (lambda d: edit_config(d, rope_parameters={"rope_type": "spiral", "rope_theta": 1.0}), "spiral"),
    "quantized already": (lambda d: edit_config(d, quantization_config={"quant_method": "gptq"}), "gptq"),
    "remote code": (lambda d: edit_config(d, auto_map={"AutoModel": "modeling_x.X"}), "trust"),
    "missing shard": (missing_shard, "model-00001-of-00002.safetensors"),
    "truncated": (truncated, "model.safetensors"),
    "lying header": (lying_header, "header"),
    "NaN": (nan_weight, "NaN or infinite"),
    "pickled": (pickled, "safetensors"),
    "no tokenizer": (no_tokenizer, "tokenizer"),
    "broken tokenizer": (broken_tokenizer, "tokenizer.json"),
    "unknown pre-tokenizer": (unknown_pre_tokenizer, "x+"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_line_and_nothing_written(fault: str, tiny_llama: Path, tmp_path: Path) -> None:
    plant, keyword = FAULTS[fault]
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    plant(model)
    room = tmp_path / "room"
    room.mkdir()
    program = Path(sys.executable).with_name("packlight")
    ran = subprocess.run(
        [program, "export", model, "--format", "gguf", "--quant", "q8_0", "--no-verify", "--no-measure", "--quiet",
         "-o", room / "out"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    assert keyword in ran.stderr
    # every misshapen tensor is listed, at most a screenful
    assert len(ran.stderr.strip().splitlines()) == (6 if fault == "shape disagrees" else 1), ran.stderr
    assert ran.stderr.startswith("error: ")
    assert list(room.iterdir()) == []
