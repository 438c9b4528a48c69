"""Small tokenizers, trained in process, built like those of the public model families.

Each family has the normalizer, pre-tokenizer, post-processor, decoder and added tokens of the public models
(SmolLM2, Llama 3, Llama 2, Mistral 7B v0.3, Qwen2.5, Qwen3, Gemma 3); only the vocabulary is small.
"""

from __future__ import annotations

import functools
import io
import json
import re
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

if TYPE_CHECKING:
    from collections.abc import Callable

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_REGEX = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
QWEN2_REGEX = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_CHAT = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
INST_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    " + message['content'] | trim + '<end_of_turn>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)


@dataclass(frozen=True)
class TinyTokenizer:
    """The files of one tokenizer.

    tokenizer_json: text of tokenizer.json
    config: tokenizer_config.json, without the chat template
    chat_template: a template, or a list of {"name", "template"}
    chat_file: the template goes to chat_template.jinja instead of tokenizer_config.json
    spm: bytes of tokenizer.model, for the SentencePiece families
    n_tokens: ids in tokenizer.json
    ids: bos_token_id, eos_token_id, … as the public config.json has them
    generation: the same for generation_config.json
    """

    tokenizer_json: str
    config: dict[str, Any]
    chat_template: str | list[dict[str, str]]
    chat_file: bool
    spm: bytes | None
    n_tokens: int
    ids: dict[str, Any]
    generation: dict[str, Any]


@functools.cache
def corpus() -> tuple[str, ...]:
    """Lines to train on: Python's manual, and some emoji, CJK, Arabic and accented text."""
    lines = [line for text in list(topics.values())[:40] for line in re.findall(r"[^\n]*\n+", text)]
    extra = [
        "naïve café über straße 👩‍👩‍👧‍👦 🎉🎉 ok 👍🏽\n", "你好，世界。東京は日本の首都です。\n",
        "مرحبا بالعالم 12345\n",
        "\tif (x == 10) { return y[3]; }\r\n", "DON'T don't WE'LL we'll I'm\n", "    indented   by    spaces\n",
    ]  # fmt: skip
    return (*lines, *(extra * 30))


def _byte_level(pre: pre_tokenizers.PreTokenizer, n_vocab: int, **model: Any) -> Tokenizer:
    """A byte-level BPE with `n_vocab` ordinary tokens, trained with the pre-tokenizer that it will use."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=n_vocab, initial_alphabet=alphabet, show_progress=False)
    )
    content = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in content["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=content["vocab"], merges=merges, **model))
    tokenizer.pre_tokenizer = pre
    return tokenizer


def _special(*texts: str) -> list[AddedToken]:
    return [AddedToken(text, special=True, normalized=False) for text in texts]


def _plain(*texts: str) -> list[AddedToken]:
    return [AddedToken(text, special=False, normalized=False) for text in texts]


def _first_ids(tokenizer: Tokenizer, texts: list[str]) -> Tokenizer:
    """The same byte-level tokenizer with special tokens at the first ids, where SmolLM2 has them."""
    content = json.loads(tokenizer.to_str())
    words = sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)
    content["model"]["vocab"] = {text: i for i, text in enumerate([*texts, *words])}
    moved: Tokenizer = Tokenizer.from_str(json.dumps(content))
    moved.add_special_tokens(_special(*texts))
    return moved


def _smollm(n_vocab: int) -> TinyTokenizer:
    """SmolLM2: digits one by one, then GPT-2's byte level; no post-processor; special tokens first."""
    specials = [
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>",
        "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>",
        "<jupyter_code>", "<jupyter_output>", "<jupyter_script>", "<empty_output>",
    ]  # fmt: skip
    pre = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer = _first_ids(_byte_level(pre, n_vocab - len(specials)), specials)
    tokenizer.decoder = decoders.ByteLevel()
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = {
        "add_prefix_space": False, "bos_token": "<|im_start|>", "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>", "model_max_length": 8192, "pad_token": "<|im_end|>",
        "tokenizer_class": "GPT2Tokenizer", "unk_token": "<|endoftext|>",
    }  # fmt: skip
    return _finish(tokenizer, config, CHATML, ids, ids)


def _llama3(n_vocab: int) -> TinyTokenizer:
    """Llama 3: its split regex, ignore_merges, special tokens last, BOS added by a template."""
    specials = [
        "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>",
        "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
    ]  # fmt: skip
    pre = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer = _byte_level(pre, n_vocab - len(specials), ignore_merges=True)
    tokenizer.add_special_tokens(_special(*specials))
    at = tokenizer.token_to_id
    bos = ("<|begin_of_text|>", at("<|begin_of_text|>"))
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A",
                pair="<|begin_of_text|> $A <|begin_of_text|> $B:1",
                special_tokens=[bos],
            ),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    config = {
        "bos_token": "<|begin_of_text|>", "clean_up_tokenization_spaces": True, "eos_token": "<|eot_id|>",
        "model_input_names": ["input_ids", "attention_mask"], "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    ends = [at("<|end_of_text|>"), at("<|eom_id|>"), at("<|eot_id|>")]
    ids = {"bos_token_id": bos[1], "eos_token_id": ends}
    return _finish(tokenizer, config, LLAMA3_CHAT, ids, ids, chat_file=True)


def _qwen(n_vocab: int, extra: list[str], *, chat_file: bool) -> TinyTokenizer:
    """Qwen2.5 and Qwen3: NFC, their split regex, no BOS; some added tokens are not special."""
    pre = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_pad|>"]
    plain = [
        "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
        "<|repo_name|>", "<|file_sep|>", *extra,
    ]  # fmt: skip
    tokenizer = _byte_level(pre, n_vocab - len(specials) - len(plain))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(_special(*specials))
    tokenizer.add_tokens(_plain(*plain))
    flags = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer.post_processor = processors.ByteLevel(**flags)
    tokenizer.decoder = decoders.ByteLevel(**flags)
    config = {
        "add_bos_token": False, "add_prefix_space": False, "additional_special_tokens": specials[1:],
        "bos_token": None, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
        "model_max_length": 131072, "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }  # fmt: skip
    at = tokenizer.token_to_id
    ids = {"bos_token_id": at("<|endoftext|>"), "eos_token_id": at("<|im_end|>")}
    generation = {
        "bos_token_id": at("<|endoftext|>"), "pad_token_id": at("<|endoftext|>"),
        "eos_token_id": [at("<|im_end|>"), at("<|endoftext|>")],
    }  # fmt: skip
    return _finish(tokenizer, config, CHATML, ids, generation, chat_file=chat_file)


def _train_spm(n_vocab: int, **options: Any) -> bytes:
    """A SentencePiece BPE model, as bytes, with byte fallback."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in corpus() for line in text.splitlines()]), model_writer=model,
        vocab_size=n_vocab, model_type="bpe", byte_fallback=True, split_digits=True, character_coverage=0.9995,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=True,
        num_threads=1, minloglevel=3, **options,
    )  # fmt: skip
    return model.getvalue()


def _spm_pieces(model: bytes) -> tuple[dict[str, int], dict[str, float]]:
    """Ids and scores of a SentencePiece model's pieces."""
    spm = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [spm.id_to_piece(i) for i in range(len(spm))]
    return {piece: i for i, piece in enumerate(pieces)}, {piece: spm.get_score(i) for i, piece in enumerate(pieces)}


def _spm_merges(vocab: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Merges that reproduce a SentencePiece BPE: every split of every piece, best score first."""
    found = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                found.append((-score, vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _spm_tokenizer(model: bytes) -> Tokenizer:
    vocab, scores = _spm_pieces(model)
    merges = _spm_merges(vocab, scores)
    return Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))


def _spm_decoder(*, strip: bool) -> decoders.Decoder:
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)


def _bos_template(bos: str, token_id: int) -> processors.PostProcessor:
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, token_id)]
    )


def _llama2(n_vocab: int) -> TinyTokenizer:
    """Llama 2: SentencePiece BPE; a normalizer puts ▁ before the text and in place of spaces."""
    model = _train_spm(n_vocab, unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    tokenizer = _spm_tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = _bos_template("<s>", 1)
    tokenizer.decoder = _spm_decoder(strip=True)
    tokenizer.add_special_tokens(_special("<unk>", "<s>", "</s>"))
    config = {
        "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "clean_up_tokenization_spaces": False,
        "eos_token": "</s>", "legacy": False, "model_max_length": 4096, "pad_token": None, "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>",
    }  # fmt: skip
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return _finish(tokenizer, config, INST_CHAT, ids, {**ids, "pad_token_id": 0}, spm=model)


def _mistral(n_vocab: int) -> TinyTokenizer:
    """Mistral 7B v0.3: SentencePiece BPE with control tokens; a Metaspace pre-tokenizer; named chat templates."""
    controls = ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
    model = _train_spm(n_vocab, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, control_symbols=controls)
    tokenizer = _spm_tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.post_processor = _bos_template("<s>", 1)
    tokenizer.decoder = _spm_decoder(strip=True)
    tokenizer.add_special_tokens(_special("<unk>", "<s>", "</s>", *controls))
    config = {
        "add_bos_token": True, "add_eos_token": False, "add_prefix_space": True, "bos_token": "<s>",
        "clean_up_tokenization_spaces": False, "eos_token": "</s>", "legacy": False, "model_max_length": 32768,
        "pad_token": None, "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>",
    }  # fmt: skip
    templates = [
        {"name": "default", "template": INST_CHAT},
        {
            "name": "tool_use",
            "template": "{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}" + INST_CHAT,
        },
    ]
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return _finish(tokenizer, config, templates, ids, ids, spm=model)


def _gemma3(n_vocab: int) -> TinyTokenizer:
    """Gemma 3: SentencePiece BPE without tokenizer.model; runs of newlines and spaces are added tokens.

    As in the public 1B model, tokenizer.json has one token more (`<image_soft_token>`) than the embedding has rows.
    """
    newlines = ["\n" * n for n in range(1, 9)]
    spaces = ["▁" * n for n in range(2, 9)]
    turns = ["<start_of_turn>", "<end_of_turn>"]
    unused = [f"<unused{i}>" for i in range(4)]
    tags = ["<table>", "</table>", "<code>", "</code>"]
    user = ["<mask>", "[multimodal]", *unused, *turns, *newlines, *spaces, *tags]
    model = _train_spm(
        n_vocab - 1,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        user_defined_symbols=user,
        add_dummy_prefix=False,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
    )
    vocab, scores = _spm_pieces(model)
    # User-defined pieces win over every merge, so their merges come first, the shorter ones before the longer.
    scores |= {piece: 1000.0 - len(piece) for piece in [*newlines, *spaces]}
    merges = _spm_merges(vocab, scores)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = _bos_template("<bos>", 2)
    tokenizer.decoder = _spm_decoder(strip=False)
    tokenizer.add_special_tokens(_special("<pad>", "<eos>", "<bos>", "<unk>"))
    tokenizer.add_tokens(_plain("<mask>", "[multimodal]", *unused))
    tokenizer.add_special_tokens(_special(*turns))
    tokenizer.add_tokens(_plain(*newlines, *spaces, *tags))
    tokenizer.add_special_tokens(_special("<image_soft_token>"))
    config = {
        "add_bos_token": True, "add_eos_token": False, "bos_token": "<bos>", "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>", "model_max_length": 32768, "pad_token": "<pad>", "sp_model_kwargs": None,
        "spaces_between_special_tokens": False, "tokenizer_class": "GemmaTokenizer", "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }  # fmt: skip
    ids = {"bos_token_id": 2, "eos_token_id": [1, vocab["<end_of_turn>"]], "pad_token_id": 0}
    return _finish(tokenizer, config, GEMMA_CHAT, ids, ids, chat_file=True)


def _finish(
    tokenizer: Tokenizer, config: dict[str, Any], chat: str | list[dict[str, str]],
    ids: dict[str, Any], generation: dict[str, Any], *, chat_file: bool = False, spm: bytes | None = None,
) -> TinyTokenizer:  # fmt: skip
    content = json.loads(tokenizer.to_str())
    decoder = {str(added["id"]): {key: added[key] for key in added if key != "id"} for added in content["added_tokens"]}
    return TinyTokenizer(
        tokenizer_json=json.dumps(content, ensure_ascii=False), config={"added_tokens_decoder": decoder, **config},
        chat_template=chat, chat_file=chat_file, spm=spm, n_tokens=tokenizer.get_vocab_size(), ids=ids,
        generation=generation,
    )  # fmt: skip


TOKENIZERS: dict[str, Callable[[int], TinyTokenizer]] = {
    "llama": _smollm,
    "llama3": _llama3,
    "llama2": _llama2,
    "mistral": _mistral,
    "qwen2": lambda n: _qwen(n, [], chat_file=False),
    "qwen3": lambda n: _qwen(n, ["<tool_response>", "</tool_response>", "<think>", "</think>"], chat_file=True),
    "gemma3": _gemma3,
}


@functools.cache
def tiny_tokenizer(family: str, n_vocab: int) -> TinyTokenizer:
    """The tokenizer of `family` with `n_vocab` tokens, trained once in a process."""
    return TOKENIZERS[family](n_vocab)
