"""Where MODEL is: a directory, a `.gguf` file or a hub id becomes `ModelFacts`, before any weight is read."""

from __future__ import annotations

import contextlib
import fnmatch
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from exporter.hub import download, repository_files, write_headers
from runtime.errors import ModelError, UserError
from targets.facts import shown
from targets.gguf.reading import read_gguf_facts
from targets.pickled import conversion_command, pickled_weights
from targets.safetensors import CONFIG, read_config, read_facts
from targets.weights import HEADERS_ONLY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from targets.facts import ModelFacts

_WEIGHTS = "model*.safetensors"
# What a conversion needs of a hub repository beside these. Other weights that many repositories hold as well (pickles,
# `consolidated.safetensors`, onnx/, original/) are not downloaded.
_WANTED = [
    "config.json", "generation_config.json", "model.safetensors.index.json",
    "tokenizer*", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "sentencepiece.bpe.model", "spiece.model",
    "preprocessor_config.json", "processor_config.json", "chat_template*", "README*", "LICENSE*",
    "modules.json", "sentence_bert_config.json", "1_Pooling/config.json",
]  # fmt: skip
_REMOTE_CODE = ["*.py"]

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(?:/[\w.-]+)?", re.ASCII)
# A tokenizer is one of these sets of files.
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
_ENCODER_TOKENIZERS = (*_TOKENIZERS, ("vocab.txt",), ("sentencepiece.bpe.model",), ("spiece.model",))
_GENERATES_TEXT = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
# A model of one of these that has a vocabulary reads text; those of images and sound have none.
_READS_TEXT = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM")


def resolve(model: str, *, trust_remote_code: bool = False, revision: str | None = None) -> ModelFacts:
    """The facts of MODEL: a directory, a `.gguf` file, or a hub id `org/name` (downloaded, or from the cache).

    revision: branch, tag or commit of a hub id. HF_HOME, HF_HUB_OFFLINE and HF_TOKEN hold as everywhere;
    huggingface_hub shows its own progress on a terminal. Raises ModelError, or UserError for bad usage.
    """
    if (found := _on_disk(model, revision, trust_remote_code=trust_remote_code)) is not None:
        return found
    snapshot = download(model, revision, [_WEIGHTS, *_WANTED, *(_REMOTE_CODE if trust_remote_code else ())])
    with _readable(snapshot):
        _refuse_other_weights(model, revision, snapshot)
        return _from_directory(snapshot, model, _name_of(model), trust_remote_code=trust_remote_code)


@contextlib.contextmanager
def without_weights(model: str, *, revision: str | None = None) -> Iterator[ModelFacts]:
    """What `resolve` gives, for who reads no weights: of a hub id only their headers are asked for.

    Facts hold within it, for files are behind them that go at its end; reading weights from those is an error. The code
    that a model may carry is not asked for, and not run.
    """
    if (found := _on_disk(model, revision, trust_remote_code=True)) is not None:
        yield found
        return
    snapshot = download(model, revision, _WANTED)
    with tempfile.TemporaryDirectory(prefix="packlight-") as name:
        room = Path(name)
        try:
            with _readable(snapshot):
                _link_all(snapshot, room)
                commit = snapshot.name
                weights = [one for one in repository_files(model, commit) if fnmatch.fnmatchcase(one, _WEIGHTS)]
                write_headers(model, commit, [one for one in weights if not (room / one).exists()], room)
                (room / HEADERS_ONLY).touch()
                _refuse_other_weights(model, commit, room)
                facts = _from_directory(room, model, _name_of(model), trust_remote_code=True)
            yield facts
        except UserError as error:  # nobody knows that directory
            raise type(error)(str(error).replace(name, str(snapshot))) from error


def _link_all(source: Path, target: Path) -> None:
    """The files of a directory and of those in it, as links in another."""
    for path in source.rglob("*"):
        if path.is_file():
            link = target / path.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())


def _name_of(hub_id: str) -> str:
    return hub_id.rsplit("/", 1)[-1]


def _on_disk(model: str, revision: str | None, *, trust_remote_code: bool) -> ModelFacts | None:
    """The facts of a directory or a file; None for a hub id. Raises ModelError for what is neither."""
    path = _as_path(model)
    with _readable(path):
        on_disk = bool(model) and path.exists()
        if on_disk and revision is not None:
            raise UserError(f"{model}: is on this disk, where --revision means nothing; leave it out or name a hub id")
        if on_disk and not path.is_dir():
            return _from_file(path, model)
        if on_disk:
            return _from_directory(path, model, None, trust_remote_code=trust_remote_code)
    if _looks_like_path(model):
        raise ModelError(f"{shown(model, 200)}: no such directory; name a model directory, a .gguf file or a hub id")
    if not _HUB_ID.fullmatch(model):
        raise ModelError(
            f"'{shown(model, 200)}': neither a directory nor a hub id; a hub id is written org/name, "
            "for example HuggingFaceTB/SmolLM2-135M-Instruct"
        )
    return None


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what the file system refuses (no permission, a name too long) into a ModelError."""
    try:
        yield
    except OSError as error:
        where = shown(error.filename or path, 200)
        raise ModelError(f"{where}: cannot be read ({error.strerror}); name a readable model directory") from error


def _as_path(model: str) -> Path:
    """MODEL as a path, `~` expanded as a shell would."""
    if "\0" in model:
        raise ModelError(f"{shown(model, 200)}: holds a null character; name a model directory, .gguf file or hub id")
    try:
        return Path(model).expanduser()
    except RuntimeError:  # ~nobody: an unknown user
        return Path(model)


def _looks_like_path(model: str) -> bool:
    """Whether MODEL can only be meant as a path."""
    return model.startswith((".", "/", "~")) or model.endswith(("/", ".gguf")) or model.count("/") > 1 or "\\" in model


def _from_file(path: Path, model: str) -> ModelFacts:
    """A single file: GGUF, or a hint at what to name in its place."""
    if path.suffix == ".gguf":
        return read_gguf_facts(path, model)
    if path.suffix == ".safetensors" or path.name == CONFIG:
        raise ModelError(f"{path}: is one file of a model; name its directory, {path.parent}")
    if pickled_weights([path.name]):
        raise ModelError(
            f"{path}: pickled weights can run any code on loading and are refused; "
            f"name their directory, {path.parent}, for the command that converts them"
        )
    raise ModelError(f"{path}: is neither a directory nor a .gguf file; name a model directory or a .gguf file")


def _from_directory(directory: Path, model: str, name: str | None, *, trust_remote_code: bool) -> ModelFacts:
    """A Hugging Face directory with everything that an export needs."""
    facts = read_facts(directory, model, name, trust_remote_code=trust_remote_code)
    generates = not facts.architecture or facts.architecture.endswith(_GENERATES_TEXT)
    encodes = facts.architecture.endswith(_READS_TEXT) and "vocab_size" in facts.config
    if generates and not _has_one_of(directory, _TOKENIZERS):
        _refuse_tokenizer(directory, "tokenizer.json, tokenizer.model, or vocab.json with merges.txt")
    if encodes and not generates and not _has_one_of(directory, _ENCODER_TOKENIZERS):
        _refuse_tokenizer(directory, "tokenizer.json, vocab.txt, a SentencePiece model, or vocab.json with merges.txt")
    return facts


def _has_one_of(directory: Path, sets: tuple[tuple[str, ...], ...]) -> bool:
    """Whether all files of one of the sets are there."""
    return any(all((directory / file).is_file() for file in files) for files in sets)


def _refuse_tokenizer(directory: Path, names: str) -> NoReturn:
    raise ModelError(
        f"{directory}: no tokenizer ({names}); copy the tokenizer's files from the model that it was trained from"
    )


def _refuse_other_weights(model: str, revision: str | None, snapshot: Path) -> None:
    """A repository of pickles or GGUF files alone downloads no weights: ask the hub what it has."""
    if any(snapshot.glob("*.safetensors")):
        return
    names = repository_files(model, revision)
    if ggufs := [shown(name) for name in names if name.endswith(".gguf")]:
        raise ModelError(
            f"{model}: the hub has GGUF files of it, no safetensors; get one with "
            f"'hf download {model} {ggufs[0]} --local-dir .' and name that file"
        )
    pickles = pickled_weights(names)
    if pickles and (snapshot / CONFIG).is_file():
        command = conversion_command(model, f"{_name_of(model)}-safetensors", read_config(snapshot), pickles)
        raise ModelError(
            f"{model}: the hub has only pickled weights of it ({shown(pickles[0])}), which can run any code on "
            f"loading; if you trust them, convert them to safetensors with: {command}"
        )
