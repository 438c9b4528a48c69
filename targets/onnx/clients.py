"""The files beside an ONNX graph that its clients read: ONNX Runtime GenAI (Android, iOS) and transformers.js (web).

Source: `make_genai_config` of onnxruntime-genai 0.18 and the sources of @huggingface/transformers 3.8 and 4.3. Both
engines look for these files in the directory itself, and for the graph in its folder `onnx`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from runtime.errors import ModelError
from targets.facts import shown
from targets.gguf.tokenizer.chat import chat_templates
from targets.gguf.tokenizer.files import TokenizerFiles, read_files

if TYPE_CHECKING:
    from pathlib import Path

GENAI_CONFIG = "genai_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

# transformers.js names a file by its dtype, and its dtype in config.json lets users leave it out.
WEB_DTYPES = {
    "model.onnx": "fp32",
    "model_fp16.onnx": "fp16",
    "model_int8.onnx": "int8",
    "model_q4.onnx": "q4",
    "model_quantized.onnx": "q8",
}

# GenAI's engine allocates the whole cache of `max_length` tokens at once where past and present share it, which
# decodes a quarter faster than copying it does. An app raises it, up to `context_length`, with one search option.
DEFAULT_MAX_LENGTH = 2048

# What GenAI calls the text part of a model that was published with a vision tower.
_GENAI_TYPES = {"gemma3": "gemma3_text"}
# Class and type of the text model that was taken out of such a model; without it transformers.js looks for more graphs.
_TEXT_MODELS = {"Gemma3ForConditionalGeneration": ("Gemma3ForCausalLM", "gemma3_text")}
_VISION_KEYS = ("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")

# Settings of generation_config.json that GenAI's search has too: their types and transformers' defaults.
_SEARCH: dict[str, tuple[type, bool | int | float]] = {
    "do_sample": (bool, False),
    "no_repeat_ngram_size": (int, 0),
    "repetition_penalty": (float, 1.0),
    "temperature": (float, 1.0),
    "top_k": (int, 50),
    "top_p": (float, 1.0),
}

_KINDS: dict[type, str] = {bool: "true or false", int: "an integer", float: "a number"}

# Copied where the model has them. Tokenizers of Android and iOS apps for BERT read vocab.txt; the rest of the second
# line is how sentence-transformers pools.
_COPIED = (
    "generation_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    "1_Pooling/config.json",
)  # fmt: skip


@dataclass(frozen=True)
class TokenIds:
    """Token ids that start a text, end it, and fill a batch; None or empty where the model has none."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


@dataclass(frozen=True)
class Decoder:
    """What an engine has to know of a decoder's graph.

    file: the graph, relative to the exported directory: "onnx/model_q4.onnx"
    n_layers, n_heads, n_kv_heads: decoder blocks, query heads, key and value heads
    head_dim, hidden: width of a head and of the residual stream
    vocab: columns of the logits
    context_length: the longest context that the model was trained for, in tokens
    """

    file: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    context_length: int
    ids: TokenIds


def token_ids(files: TokenizerFiles, config: dict[str, Any]) -> TokenIds:
    """The special ids: generation_config.json's, else config.json's; as the clients that stop by them do.

    config: config.json as parsed (the text model's part). A missing pad is the first end. Raises ModelError.
    """
    found: dict[str, list[int]] = {}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        sources = (("generation_config.json", files.generation), ("config.json", config))
        given = [_ids(files.directory / name, key, source.get(key)) for name, source in sources]
        found[key] = next((ids for ids in given if ids), [])
    eos, pad = found["eos_token_id"], found["pad_token_id"]
    return TokenIds(bos=_first(found["bos_token_id"]), eos=tuple(eos), pad=_first(pad or eos))


def genai_config(
    config: dict[str, Any],
    decoder: Decoder,
    generation: dict[str, Any] | None = None,
    session_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """genai_config.json of a decoder.

    config: config.json as parsed (the text model's part)
    generation: generation_config.json as parsed; the sampling that its model's makers chose becomes the default
    session_options: ONNX Runtime's, for example {"intra_op_num_threads": 2}
    Raises ModelError for a setting of the wrong type: the engine refuses the whole file for one null.
    """
    ids: dict[str, Any] = {"bos_token_id": decoder.ids.bos, "pad_token_id": decoder.ids.pad}
    if decoder.ids.eos:
        ids["eos_token_id"] = list(decoder.ids.eos) if len(decoder.ids.eos) > 1 else decoder.ids.eos[0]
    model_type = str(config.get("model_type", "llama"))
    model = {
        **{name: value for name, value in ids.items() if value is not None},
        "context_length": decoder.context_length,
        "decoder": _genai_decoder(decoder, session_options or {}),
        "type": _GENAI_TYPES.get(model_type, model_type),
        "vocab_size": decoder.vocab,
    }
    search = {name: _setting(name, generation or {}) for name in _SEARCH}
    max_length = min(decoder.context_length, DEFAULT_MAX_LENGTH)
    return {"model": model, "search": {**search, "max_length": max_length, "past_present_share_buffer": True}}


def web_config(
    config: dict[str, Any],
    file: str,
    *,
    data_files: int = 0,
    decoder: Decoder | None = None,
    half_cache: bool = False,
) -> dict[str, Any]:
    """config.json with what transformers.js needs: which file there is, and how many files hold its weights.

    config: config.json as parsed (the text model's part)
    file: the graph, relative to the directory; its name is one of WEB_DTYPES
    data_files: files of external data beside it, named FILE_data, FILE_data_1, …
    decoder: where there is a cache; its sizes are written out, because older versions read them here alone
    half_cache: the cache is float16
    """
    name = PurePosixPath(file).name
    web: dict[str, Any] = {"dtype": WEB_DTYPES[name]}
    if data_files:
        web["use_external_data_format"] = {name: data_files}
    if half_cache:
        web["kv_cache_dtype"] = "float16"
    result = dict(config)
    for architecture in config.get("architectures") or ():
        if architecture in _TEXT_MODELS:
            text_class, text_type = _TEXT_MODELS[architecture]
            result = {key: value for key, value in config.items() if key not in _VISION_KEYS}
            result |= {"architectures": [text_class], "model_type": text_type}
    if decoder is not None:
        result |= {"num_key_value_heads": decoder.n_kv_heads, "head_dim": decoder.head_dim}
    return {**result, "transformers.js_config": web}


def copy_side_files(source: Path, out: Path) -> list[str]:
    """Put the tokenizer's and the other small files of the model at `source` into `out`; returns their names, sorted.

    config.json and genai_config.json are not among them. tokenizer_config.json gets the chat template that
    `source` may have in a file of its own, because transformers.js does not read that one; named templates become
    files, because GenAI reads no list of them. Raises ModelError, before anything is written, where a file is damaged
    or where there is no tokenizer.json, which every client needs.
    """
    files = read_files(source)
    if files.tokenizer is None:
        fix = "save it there with AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        raise ModelError(f"{source}: has no tokenizer.json, which every client reads; {fix}")
    written = _tokenizer_files(files)
    for name, text in written.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    copied = [name for name in _COPIED if (source / name).is_file()]
    for name in copied:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, out / name)
    return sorted([*written, *copied])


def _tokenizer_files(files: TokenizerFiles) -> dict[str, str]:
    """tokenizer_config.json and, where there is more than one chat template, a file for each: content by name."""
    templates = chat_templates(files)
    config = {key: value for key, value in files.config.items() if key != "chat_template"}
    # GenAI loads no tokenizer without this name; this class takes tokenizer.json as it is.
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    default = templates.pop("default", None)
    if default is not None:
        config["chat_template"] = default
    written = {TOKENIZER_CONFIG: json.dumps(config, indent=2, ensure_ascii=False) + "\n"}
    if templates and default is not None:
        written["chat_template.jinja"] = default
    for name, text in templates.items():
        if not name.isprintable() or set(name) & set("/\\"):
            raise ModelError(f"{files.directory}: a chat template is named '{shown(name)}'; give it a plain name")
        written[f"additional_chat_templates/{name}.jinja"] = text
    return written


def _genai_decoder(decoder: Decoder, session_options: dict[str, Any]) -> dict[str, Any]:
    """The part about the graph. No `sliding_window`: the graph's own attention looks back that far, over a whole cache;
    the engine's setting is for graphs whose local layers keep a shorter one.
    """
    past, present = "past_key_values.%d", "present.%d"
    return {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": [], **session_options},
        "filename": decoder.file,
        "head_size": decoder.head_dim,
        "hidden_size": decoder.hidden,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": f"{past}.key",
            "past_value_names": f"{past}.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": f"{present}.key",
            "present_value_names": f"{present}.value",
        },
        "num_attention_heads": decoder.n_heads,
        "num_hidden_layers": decoder.n_layers,
        "num_key_value_heads": decoder.n_kv_heads,
    }


def _setting(name: str, generation: dict[str, Any]) -> bool | int | float:
    """One setting of generation_config.json, or transformers' default. Raises ModelError."""
    kind, default = _SEARCH[name]
    value: Any = generation.get(name)
    if value is None:
        return default
    found = type(value)
    if found is not kind and (found, kind) != (int, float):
        fix = "correct it or delete it"
        raise ModelError(f"generation_config.json: '{name}' is {shown(value)}, not {_KINDS[kind]}; {fix}")
    setting: bool | int | float = value
    return setting


def _ids(path: Path, key: str, value: Any) -> list[int]:  # noqa: ANN401 (parsed JSON)
    """A token id, a list of them or null as a list. Raises ModelError."""
    given = value if isinstance(value, list) else [] if value is None else [value]
    # -1 stands for "none" in some public configs.
    if not all(type(each) is int and each >= -1 for each in given):
        raise ModelError(f"{path}: '{key}' is {shown(value)}, not a token id or a list of them; download it again")
    return [each for each in given if each >= 0]


def _first(ids: list[int]) -> int | None:
    return ids[0] if ids else None
