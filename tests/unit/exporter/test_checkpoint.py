from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.checkpoint import resolve
from exporter.hub import why
from runtime.errors import ModelError, UserError

ROOT = Path(__file__).parents[3]


def write_model(directory: Path, *, architecture: str = "LlamaForCausalLM", weights: bool = True) -> Path:
    """A model directory of one tensor with a tokenizer's file."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (directory / "tokenizer.json").write_text("{}")
    if weights:
        header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        content = len(header).to_bytes(8, "little") + header + bytes(4)
        (directory / "model.safetensors").write_bytes(content)
    return directory


def refusal(model: str | Path, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(str(model), **options)  # type: ignore[arg-type] # keyword options of any kind
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_model(tmp_path / "org" / "Tiny")
    facts = resolve(str(directory))
    assert (facts.source, facts.name, facts.requested, list(facts.tensors)) == (
        "huggingface", "Tiny", str(directory), ["w"],
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert resolve("org/Tiny").path == Path("org/Tiny")  # a directory wins over a hub id
    monkeypatch.chdir(directory)
    assert resolve(".").name == "Tiny"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/org/Tiny/").name == "Tiny"


def test_gguf_file(tmp_path: Path) -> None:
    import gguf
    import numpy as np

    path = tmp_path / "Tiny.F32.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("w", np.zeros((2, 3), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    facts = resolve(str(path))
    assert (facts.source, facts.name, facts.tensors["w"].shape) == ("gguf", "Tiny.F32", (2, 3))


@pytest.mark.parametrize("model", ["./x", "/no/x", "../x", "x/y/z", "~/no-such-thing", "org/x/", "model.gguf", "a\\b"])
def test_what_looks_like_a_path_is_not_asked_of_the_hub(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert refusal(model).startswith(f"{model}: no such directory; ")


@pytest.mark.parametrize("model", ["", "a b", "org/na me", "-x", "a\nb", "é"])
def test_what_can_be_neither(model: str) -> None:
    assert "neither a directory nor a hub id" in refusal(model)


def test_null_character_and_long_names() -> None:
    assert "null character" in refusal("a\0b")
    assert "cannot be read (File name too long)" in refusal("x" * 5000)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_one_file_of_a_model(tmp_path: Path, name: str) -> None:
    directory = write_model(tmp_path / "Tiny")
    assert f"is one file of a model; name its directory, {directory}" in refusal(directory / name)


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    assert "pickled weights can run any code" in refusal(tmp_path / "pytorch_model.bin")
    assert "is neither a directory nor a .gguf file" in refusal(tmp_path / "notes.txt")


def test_missing_tokenizer(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "Tiny")
    (directory / "tokenizer.json").unlink()
    assert "no tokenizer (tokenizer.json, tokenizer.model, or vocab.json with merges.txt)" in refusal(directory)
    (directory / "vocab.json").write_text("{}")
    assert "no tokenizer" in refusal(directory)
    (directory / "merges.txt").write_text("")
    assert resolve(str(directory)).name == "Tiny"


def test_encoder_may_come_without_those_tokenizer_files(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "Encoder", architecture="BertModel")
    (directory / "tokenizer.json").unlink()
    assert resolve(str(directory)).architecture == "BertModel"


@pytest.mark.parametrize(
    "architecture", ["BertModel", "XLMRobertaForSequenceClassification", "BertForTokenClassification"]
)
def test_an_encoder_of_text_needs_a_tokenizer(tmp_path: Path, architecture: str) -> None:
    directory = write_model(tmp_path / "Encoder", architecture=architecture)
    (directory / "config.json").write_text(json.dumps({"architectures": [architecture], "vocab_size": 9}))
    (directory / "tokenizer.json").unlink()
    assert "no tokenizer (tokenizer.json, vocab.txt, a SentencePiece model, or vocab.json" in refusal(directory)
    for name in ("vocab.txt", "sentencepiece.bpe.model", "tokenizer.model"):
        (directory / name).write_text("")
        assert resolve(str(directory)).architecture == architecture
        (directory / name).unlink()


def test_pickles_and_remote_code(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "Tiny", weights=False)
    (directory / "pytorch_model.bin").write_bytes(b"")
    assert "python -c '" in refusal(directory)
    other = write_model(tmp_path / "Other")
    (other / "config.json").write_text('{"architectures": ["X"], "auto_map": {"AutoModel": "x.X"}}')
    assert "--trust-remote-code" in refusal(other)
    (other / "tokenizer.json").unlink()
    assert resolve(str(other), trust_remote_code=True).architecture == "X"


def test_revision_is_for_hub_ids(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "Tiny")
    with pytest.raises(UserError, match="--revision means nothing"):
        resolve(str(directory), revision="main")


def resolve_in_process(model: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What `resolve` makes of a hub id in a fresh process, which reads HF_HOME and HF_HUB_OFFLINE on import."""
    code = (
        "import sys\n"
        "from exporter.checkpoint import resolve\n"
        "from runtime.errors import ModelError\n"
        "try:\n"
        "    facts = resolve(sys.argv[1], revision=(sys.argv[2:] or [None])[0])\n"
        "    print('ok', facts.name, facts.requested, *facts.tensors)\n"
        "except ModelError as error:\n"
        "    print(error)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", code, model, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_cached(home: Path, *, weights: bool = True) -> Path:
    """The cache's own layout, by hand: a commit's snapshot and the branch that points at it."""
    repository = home / "hub" / "models--org--Tiny-1B"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return write_model(repository / "snapshots" / COMMIT, weights=weights)


def test_cached_snapshot_resolves_offline(tmp_path: Path) -> None:
    write_cached(tmp_path)
    lines = resolve_in_process("org/Tiny-1B", tmp_path).stdout.splitlines()
    assert lines == ["ok Tiny-1B org/Tiny-1B w", "False False"]
    at_commit = resolve_in_process("org/Tiny-1B", tmp_path, COMMIT).stdout
    assert at_commit.startswith("ok Tiny-1B")


def test_offline_and_not_cached_is_one_line(tmp_path: Path) -> None:
    lines = resolve_in_process("org/Tiny-1B", tmp_path).stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"org/Tiny-1B: no such directory here and not in the cache ({tmp_path}/hub)")
    assert lines[0].endswith("unset HF_HUB_OFFLINE or name a directory")
    write_cached(tmp_path)
    missing = resolve_in_process("org/Tiny-1B", tmp_path, "v2").stdout
    assert "not in the cache at revision 'v2'" in missing


def test_cached_without_weights(tmp_path: Path) -> None:
    write_cached(tmp_path, weights=False)
    assert "no weights, neither model.safetensors nor" in resolve_in_process("org/Tiny-1B", tmp_path).stdout


def test_cache_without_what_is_not_needed_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    snapshot = write_cached(tmp_path)

    def incomplete(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.IncompleteSnapshotError("README.md is missing", snapshot_path=str(snapshot))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", incomplete)
    assert resolve("org/Tiny-1B").name == "Tiny-1B"


def test_only_what_a_conversion_needs_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    repository = [
        "config.json", "generation_config.json", "model.safetensors", "model-00001-of-00002.safetensors",
        "model.safetensors-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
        "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja", "README.md",
        "LICENSE", "special_tokens_map.json", "added_tokens.json", "modules.json", "sentence_bert_config.json",
        "1_Pooling/config.json", "sentencepiece.bpe.model", "vocab.txt",
    ]  # fmt: skip
    other = [
        "pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors", "onnx/model.onnx", "x.gguf",
        "modeling_x.py", ".gitattributes", "1_Pooling/model.safetensors", "1_Pooling/x.py", "2_Dense/model.safetensors",
        "2_Dense/config.json",
    ]  # fmt: skip
    asked: list[dict[str, object]] = []

    def download(_: str, **options: object) -> str:
        asked.append(options)
        return str(tmp_path / "hub" / "models--org--Tiny-1B" / "snapshots" / COMMIT)

    write_cached(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    resolve("org/Tiny-1B", revision="v1")
    resolve("org/Tiny-1B", trust_remote_code=True)

    def kept(options: dict[str, object]) -> list[str]:
        patterns = {name: options[name] for name in ("allow_patterns", "ignore_patterns")}
        return list(filter_repo_objects([*repository, *other], **patterns))  # type: ignore[arg-type] # as recorded

    assert kept(asked[0]) == repository
    assert kept(asked[1]) == [*repository, "modeling_x.py"]
    assert asked[0]["revision"] == "v1"


def test_pickled_repository_is_refused_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    snapshot = write_cached(tmp_path, weights=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    files = ["config.json", "pytorch_model.bin", "original/x.safetensors"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: files)
    message = refusal("org/Tiny-1B")
    assert "the hub has only pickled weights of it (pytorch_model.bin)" in message
    assert 's, d = "org/Tiny-1B", "Tiny-1B-safetensors"' in message
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: ["x-Q4_0.gguf"])
    assert "get one with 'hf download org/Tiny-1B x-Q4_0.gguf --local-dir .'" in refusal("org/Tiny-1B")


def hub_error(name: str) -> Exception:
    """An error of the hub as its server's answer makes it, with a message of several lines."""
    from huggingface_hub import errors

    kind = getattr(errors, name)
    error: Exception = kind.__new__(kind)
    error.args = ("403 Client Error.\n\nCannot access\x1b[0m",)
    return error


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", "is gated; accept its terms at https://huggingface.co/org/x, then set HF_TOKEN"),
        ("RepositoryNotFoundError", "no such directory here and no such model on the hub; check the spelling"),
        ("RevisionNotFoundError", "has no revision 'v9'"),
    ],
)
def test_refusals_of_the_hub(kind: str, words: str) -> None:
    message = why("org/x", "v9", hub_error(kind))
    assert message.startswith("org/x: ")
    assert words in message
    assert message.isprintable()


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants, errors

    def fail(*_: object, **__: object) -> str:
        raise errors.LocalEntryNotFoundError("Got: x\nAn error") from ConnectionError("name\n\x1b[2J resolution")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = refusal("org/x")
    assert message.startswith("org/x: cannot be downloaded (")
    assert "ConnectionError" in message
    assert message.endswith("check the network, or name a directory")


def test_the_http_librarys_own_errors_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    def fail(*_: object, **__: object) -> str:
        raise vars(errors)["HTTPError"]("proxy refused")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert "cannot be downloaded (HTTPError: proxy refused)" in refusal("org/x")
