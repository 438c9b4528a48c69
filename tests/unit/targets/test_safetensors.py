from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from runtime.errors import ModelError
from targets.safetensors import DTYPE_BITS, read_facts, read_header

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
NAMES = {"float32": "F32", "float16": "F16", "uint16": "BF16"}
TENSORS = {
    "model.embed_tokens.weight": np.arange(12, dtype=np.float32).reshape(4, 3),
    "model.norm.weight": np.ones(3, np.float16),
    "scalar": np.array(2.5, np.float32),
}


def pack(header: dict[str, Any] | bytes, data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entries(tensors: dict[str, np.ndarray]) -> tuple[dict[str, Any], bytes]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        end = len(data) + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": [len(data), end]}
        data += array.tobytes()
    return header, data


def write_model(directory: Path, config: Any = CONFIG, tensors: dict[str, np.ndarray] | None = TENSORS) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        (directory / "model.safetensors").write_bytes(pack(*entries(tensors)))
    return directory


def write_shards(directory: Path, shards: dict[str, dict[str, np.ndarray]], **index: str) -> Path:
    """A sharded model; `index` adds tensor names to the index, with `__` for a dot."""
    write_model(directory, tensors=None)
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    weight_map |= {name.replace("__", "."): shard for name, shard in index.items()}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for shard, tensors in shards.items():
        (directory / shard).write_bytes(pack(*entries(tensors)))
    return directory


def refusal(directory: Path, **options: Any) -> str:
    """The one line that `directory` is refused with."""
    before = sorted(directory.iterdir()) if directory.is_dir() else []
    with pytest.raises(ModelError) as caught:
        read_facts(directory, "asked", **options)
    assert before == (sorted(directory.iterdir()) if directory.is_dir() else [])
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    return message


def test_single_file(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "Tiny-1")
    facts = read_facts(directory, "asked")
    assert (facts.source, facts.path, facts.name, facts.requested) == ("huggingface", directory, "Tiny-1", "asked")
    assert facts.architecture == "LlamaForCausalLM"
    assert facts.n_stored_params == 12 + 3 + 1
    embedding = facts.tensors["model.embed_tokens.weight"]
    assert (embedding.shape, embedding.dtype, embedding.n_bytes) == ((4, 3), "F32", 48)
    assert facts.tensors["scalar"].shape == ()
    for name, array in TENSORS.items():
        fact = facts.tensors[name]
        raw = fact.file.read_bytes()[fact.offset : fact.offset + fact.n_bytes]
        assert raw == array.tobytes()


def test_reads_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    library.save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    facts = {fact.name: fact for fact in read_header(tmp_path / "x.safetensors")}
    assert {name: fact.shape for name, fact in facts.items()} == {name: a.shape for name, a in TENSORS.items()}
    whole = (tmp_path / "x.safetensors").read_bytes()
    for name, fact in facts.items():
        assert whole[fact.offset : fact.offset + fact.n_bytes] == TENSORS[name].tobytes()


def test_shards_and_an_explicit_name(tmp_path: Path) -> None:
    one, two = {"a": np.ones(2, np.float32)}, {"b": np.ones((2, 2), np.float16), "c": np.ones(1, np.float32)}
    directory = write_shards(tmp_path, {"model-1-of-2.safetensors": one, "model-2-of-2.safetensors": two})
    facts = read_facts(directory, "org/name", "name")
    assert facts.name == "name"
    assert {name: (fact.shape, fact.file.name) for name, fact in facts.tensors.items()} == {
        "a": ((2,), "model-1-of-2.safetensors"),
        "b": ((2, 2), "model-2-of-2.safetensors"),
        "c": ((1,), "model-2-of-2.safetensors"),
    }


def test_text_config_is_merged_up(tmp_path: Path) -> None:
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "eos_token_id": [1, 106],
        "dtype": "bfloat16",
        "vision_config": {"hidden_size": 1152},
        "text_config": {
            "architectures": ["X"], "model_type": "gemma3_text", "hidden_size": 2560, "eos_token_id": 1, "dtype": None,
        },
    }  # fmt: skip
    merged = read_facts(write_model(tmp_path, config), "asked").config
    assert merged == {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "eos_token_id": [1, 106],
        "dtype": "bfloat16",
        "vision_config": {"hidden_size": 1152},
    }


def test_remote_code_only_when_allowed(tmp_path: Path) -> None:
    directory = write_model(tmp_path, {**CONFIG, "auto_map": {"AutoConfig": "evil.Config"}})
    message = refusal(directory)
    assert "auto_map" in message
    assert "--trust-remote-code" in message
    assert read_facts(directory, "asked", trust_remote_code=True).tensors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ('{"a": 1, "a": 2}', "repeated key 'a'"),
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "is not a JSON object"),
        ('{"architectures": "LlamaForCausalLM"}', "'architectures' is not a list"),
        ('{"text_config": 3}', "'text_config' is not an object"),
    ],
)
def test_bad_config(tmp_path: Path, text: str, words: str) -> None:
    directory = write_model(tmp_path)
    (directory / "config.json").write_text(text)
    message = refusal(directory)
    assert message.startswith(f"{directory / 'config.json'}: ")
    assert words in message


def test_config_that_is_not_text(tmp_path: Path) -> None:
    directory = write_model(tmp_path)
    (directory / "config.json").write_bytes(b"\xff\xfe{}")
    assert "is not JSON" in refusal(directory)


def test_no_directory_no_config_no_weights(tmp_path: Path) -> None:
    assert "no such directory" in refusal(tmp_path / "nowhere")
    assert "no config.json; name a Hugging Face model directory" in refusal(write_model(tmp_path / "a", None))
    assert "no weights, neither model.safetensors nor" in refusal(write_model(tmp_path / "b", tensors=None))
    assert "hold no tensor at all" in refusal(write_model(tmp_path / "c", tensors={}))


def test_directory_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "packlight merge" in refusal(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.Q4_0.gguf").write_bytes(b"GGUF")
    assert "it holds x.Q4_0.gguf: name that file" in refusal(other)
    shards_only = write_model(tmp_path / "shards", tensors=None)
    (shards_only / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert "has model-00001-of-00002.safetensors but neither" in refusal(shards_only)


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "last.ckpt", "weights.pt"])
def test_pickles_are_refused_with_the_command(tmp_path: Path, pickle: str) -> None:
    directory = write_model(tmp_path / "my model", tensors=None)
    (directory / pickle).write_bytes(b"\x80\x04")
    (directory / "training_args.bin").write_bytes(b"\x80\x04")
    message = refusal(directory)
    assert f"only pickled weights ({pickle})" in message
    assert "python -c 'from transformers import LlamaForCausalLM as M" in message or "import os, torch" in message
    assert f's, d = "{directory}", "{directory}-safetensors"' in message
    assert message.endswith("save_pretrained(d)'")


def test_trainer_leftovers_are_not_weights(tmp_path: Path) -> None:
    directory = write_model(tmp_path, tensors=None)
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        (directory / name).write_bytes(b"")
    assert "no weights, neither" in refusal(directory)


def test_class_name_in_the_command_is_a_plain_name(tmp_path: Path) -> None:
    directory = write_model(tmp_path, {"architectures": ["x; import os"]}, tensors=None)
    (directory / "pytorch_model.bin").write_bytes(b"")
    message = refusal(directory)
    assert "import AutoModelForCausalLM as M" in message
    assert "import os" not in message


def test_all_missing_shards_at_once(tmp_path: Path) -> None:
    directory = write_shards(tmp_path, {"m1.safetensors": {"a": np.ones(2, np.float32)}}, b="m2.x", c="m3.x", d="m3.x")
    assert "2 of 3 shards missing: m2.x, m3.x; download" in refusal(directory)


def test_index_promises_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    one, two = {"a": np.ones(2, np.float32)}, {"b": np.ones(2, np.float32)}
    directory = write_shards(tmp_path, {"m1.safetensors": one, "m2.safetensors": two}, z__w="m2.safetensors")
    assert "names tensors that their shards do not hold: z.w (not in m2.safetensors)" in refusal(directory)


def test_index_that_mixes_up_its_shards(tmp_path: Path) -> None:
    one, two = {"a": np.ones(2, np.float32)}, {"b": np.ones(2, np.float32)}
    directory = write_shards(tmp_path, {"m1.safetensors": one, "m2.safetensors": two})
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m2.safetensors", "b": "m1.safetensors"}}))
    assert "do not hold: a (not in m2.safetensors), b (not in m1.safetensors)" in refusal(directory)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    same = {"a": np.ones(2, np.float32)}
    directory = write_shards(tmp_path, {"m1.safetensors": {**same, "c": same["a"]}, "m2.safetensors": same})
    assert "the same tensor in two shards: a (in m1.safetensors and m2.safetensors)" in refusal(directory)


@pytest.mark.parametrize("shard", ["../secret", "/etc/passwd", "..", "", "a\nb", "a\0b"])
def test_index_stays_in_its_directory(tmp_path: Path, shard: str) -> None:
    directory = write_shards(tmp_path, {"m1.safetensors": {"a": np.ones(2, np.float32)}}, b=shard)
    assert "names files outside its directory" in refusal(directory)


@pytest.mark.parametrize("weight_map", [None, [], {"a": 3}, {"a": ["m"]}])
def test_damaged_index(tmp_path: Path, weight_map: Any) -> None:
    directory = write_model(tmp_path, tensors=None)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "'weight_map' is not an object of tensor and file names" in refusal(directory)


HEADER, DATA = entries({"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 3), np.float16)})


def changed(name: str, **change: Any) -> bytes:
    return pack({**HEADER, name: {**HEADER[name], **change}}, DATA)


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is truncated, 0 bytes do not even hold a header"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "truncated": (pack(HEADER, DATA[:-1]), "is truncated, has "),
    "tail": (pack(HEADER, DATA + b"\0"), "has 1 bytes after its last tensor"),
    "length past the end": ((9999).to_bytes(8, "little") + b"{}", "claims a header of 9999 bytes, but only 2 follow"),
    "length over 100 MB": (b"\xff" * 8 + b"{}", "claims a header of 18446744073709551615 bytes, over 100000000"),
    "not JSON": (pack(b"hello", DATA), "its header is not JSON"),
    "not UTF-8": (pack(b'{"\xff": 1}', DATA), "its header is not JSON"),
    "not an object": (pack(b"[]", DATA), "its header is not a JSON object"),
    "depth bomb": (pack(b'{"a":' * 50_000, DATA), "nested too deeply"),
    "digit bomb": (pack(b'{"a": ' + b"9" * 5000 + b"}", DATA), "its header is not JSON"),
    "repeated": (pack(b'{"a": {}, "a": {}}', DATA), "repeated key 'a'"),
    "metadata": (pack({"__metadata__": []}, b""), "'__metadata__' in its header is not an object"),
    "entry": (pack({"a": 5}, b""), "tensor a: not an object"),
    "overlap": (changed("b", data_offsets=[12, 24]), "tensor b overlaps a"),
    "twice the same bytes": (changed("b", dtype="F32", shape=[4], data_offsets=[0, 16]), "tensor b overlaps a"),
    "hole": (pack({"a": HEADER["a"], "b": {**HEADER["b"], "data_offsets": [18, 30]}}, DATA + b"\0\0"),
             "tensor b leaves 2 unused bytes after a"),
    "gap in front": (pack({"b": HEADER["b"]}, DATA), "tensor b leaves 16 unused bytes after the header"),
    "backwards": (changed("b", data_offsets=[28, 16]), "tensor b: bad data_offsets [28, 16]"),
    "three offsets": (changed("b", data_offsets=[16, 20, 28]), "tensor b: bad data_offsets"),
    "negative offset": (changed("a", data_offsets=[-16, 0]), "tensor a: bad data_offsets"),
    "size": (changed("a", shape=[5]), "tensor a: F32 [5] takes 20 bytes, its data_offsets span 16"),
    "half bytes": (changed("a", dtype="F4", shape=[33]), "tensor a: F4 [33] takes 16.5 bytes, its"),
    "dtype": (changed("a", dtype="Q4_0"), "tensor a: unknown dtype Q4_0"),
    "dtype list": (changed("a", dtype=["F32"]), "tensor a: unknown dtype"),
    "negative dim": (changed("a", shape=[-2, -2]), "tensor a: bad shape [-2, -2]"),
    "float dim": (changed("a", shape=[4.0]), "tensor a: bad shape [4.0]"),
    "bool dim": (changed("a", shape=[True, 4]), "tensor a: bad shape [True, 4]"),
    "huge dim": (changed("a", shape=[2**62, 2**62]), "tensor a: bad shape"),
    "no shape": (changed("a", shape=None), "tensor a: bad shape None"),
    "name": (pack({"a\u001b[2J": HEADER["a"]}, DATA[:16]), "unprintable characters in the name"),
    "all of them": (pack({"a": 1, "b": 2}, b""), "tensor a: not an object; tensor b: not an object"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(tmp_path: Path, case: str) -> None:
    content, words = BAD_FILES[case]
    directory = write_model(tmp_path)
    (directory / "model.safetensors").write_bytes(content)
    message = refusal(directory)
    assert message.startswith(f"{directory / 'model.safetensors'}: ")
    assert words in message


def test_the_good_file_of_the_bad_cases_is_good(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(pack(HEADER, DATA))
    assert [fact.name for fact in read_header(tmp_path / "x")] == ["a", "b"]


def test_header_order_is_free_and_empty_tensors_are_allowed(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0, 7], "data_offsets": [16, 16]}
    (tmp_path / "x").write_bytes(pack({"b": HEADER["b"], "e": empty, "a": HEADER["a"]}, DATA))
    assert [(fact.name, fact.n_bytes) for fact in read_header(tmp_path / "x")] == [("a", 16), ("e", 0), ("b", 12)]


def test_dangling_link(tmp_path: Path) -> None:
    directory = write_model(tmp_path, tensors=None)
    (directory / "model.safetensors").symlink_to(tmp_path / "gone")
    assert "cannot be read (No such file or directory)" in refusal(directory)


def test_every_dtype_has_whole_or_known_bits() -> None:
    assert {name for name, bits in DTYPE_BITS.items() if bits not in (8, 16, 32, 64)} == {"F6_E2M3", "F6_E3M2", "F4"}
    assert (DTYPE_BITS["BF16"], DTYPE_BITS["F8_E4M3"], DTYPE_BITS["C64"]) == (16, 8, 64)


HOSTILE = [
    b"-1", b"1e999", b"99999999999999999999", b"NaN", b"null", b"[[[[", b"}}", b'"', b"true", b"0.5", b"\\ud800", b"\0",
]  # fmt: skip


def mutate(rng: random.Random, content: bytes) -> bytes:
    """One to three random changes: bytes, pieces, hostile words, the length field, the file's end."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at, kind = rng.randrange(max(1, len(changed))), rng.randrange(6)
        if kind == 0 and changed:
            changed[at] = rng.randrange(256)
        elif kind == 1:
            del changed[at : at + rng.randint(1, 20)]
        elif kind == 2:
            changed[at:at] = rng.choice(HOSTILE)
        elif kind == 3:
            changed[at : at + rng.randint(1, 4)] = rng.choice(HOSTILE)
        elif kind == 4:
            changed[:8] = rng.choice([0, 1, len(changed), 2**63, rng.randrange(300)]).to_bytes(8, "little")
        else:
            del changed[at:]
    return bytes(changed)


def test_mutated_files_raise_nothing_but_model_errors(tmp_path: Path) -> None:
    rng, content, messages = random.Random(7), pack(HEADER, DATA), []
    file = tmp_path / "x.safetensors"
    for number in range(3000):
        mutated = mutate(rng, content)
        if number % 2:  # keep the length honest, so that the JSON behind it is what is tested
            body = mutate(rng, content[8 : -len(DATA)])
            mutated = pack(body, DATA)
        file.write_bytes(mutated)
        try:
            facts = read_header(file)
        except ModelError as error:
            messages.append(str(error))
        else:
            assert all(fact.offset + fact.n_bytes <= len(mutated) for fact in facts), mutated
    assert len(messages) > 2000
    assert all(message.isprintable() for message in messages)


@pytest.mark.slow
@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "weights.pt"])
def test_the_command_converts(tmp_path: Path, tiny_llama: Path, pickle: str) -> None:
    import shutil
    import subprocess
    import sys

    import torch
    from transformers import AutoModelForCausalLM

    directory = tmp_path / "it's a $model"
    shutil.copytree(tiny_llama, directory)
    (directory / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype="auto")
    torch.save(model.state_dict(), directory / pickle)
    command = refusal(directory).split(" with: ", 1)[1].replace("python ", f"{sys.executable} ", 1)
    subprocess.run(command, shell=True, check=True, capture_output=True)
    before, after = read_facts(tiny_llama, ""), read_facts(directory.with_name(f"{directory.name}-safetensors"), "")
    assert {name: (fact.shape, fact.dtype) for name, fact in after.tensors.items()} == {
        name: (fact.shape, fact.dtype) for name, fact in before.tensors.items()
    }
    assert (after.path / "tokenizer.json").is_file()
