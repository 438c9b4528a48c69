"""A Modelfile for Ollama: the file, the context, stop texts, and the chat format as a Go template.

Ollama takes a template in Go's text/template. It knows some Jinja templates by their text and reads those from the
GGUF; for the chat formats recognised here the template is written out, so that it does not depend on that.
Reference: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class ChatFormat:
    """A chat format. marks: texts that its Jinja template has, all of them; go: the same as a Go template.

    stop: texts that end a turn; system: what stands before and after the system turn
    """

    name: str
    marks: tuple[str, ...]
    stop: tuple[str, ...]
    system: tuple[str, str]
    go: str


# In each: `.Messages` holds the system turn too; the assistant's header is opened unless its turn is being continued.
_LAST = "{{- $last := eq (len (slice $.Messages $i)) 1 }}"
_CHATML = f"""\
{{{{- range $i, $_ := .Messages }}}}
{_LAST}<|im_start|>{{{{ .Role }}}}
{{{{ .Content }}}}<|im_end|>
{{{{ if and $last (ne .Role "assistant") }}}}<|im_start|>assistant
{{{{ end }}}}
{{{{- end }}}}"""
_LLAMA3 = f"""\
{{{{- range $i, $_ := .Messages }}}}
{_LAST}<|start_header_id|>{{{{ .Role }}}}<|end_header_id|>

{{{{ .Content }}}}<|eot_id|>
{{{{- if and $last (ne .Role "assistant") }}}}<|start_header_id|>assistant<|end_header_id|>

{{{{ end }}}}
{{{{- end }}}}"""
# Gemma has no system turn: its text opens the first user turn.
_GEMMA = f"""\
{{{{- $system := .System }}}}
{{{{- range $i, $_ := .Messages }}}}
{_LAST}
{{{{- if eq .Role "user" }}}}<start_of_turn>user
{{{{ if $system }}}}{{{{ $system }}}}

{{{{ $system = "" }}}}{{{{ end }}}}{{{{ .Content }}}}<end_of_turn>
{{{{ else if eq .Role "assistant" }}}}<start_of_turn>model
{{{{ .Content }}}}<end_of_turn>
{{{{ end }}}}
{{{{- if and $last (ne .Role "assistant") }}}}<start_of_turn>model
{{{{ end }}}}
{{{{- end }}}}"""


def _inst(before: str, after: str) -> str:
    """Llama 2's and Mistral's format; before and after: what stands around the system text in the first turn."""
    return f"""\
{{{{- $system := .System }}}}
{{{{- range .Messages }}}}
{{{{- if eq .Role "user" }}}}[INST] {{{{ if $system }}}}{before}{{{{ $system }}}}{after}

{{{{ $system = "" }}}}{{{{ end }}}}{{{{ .Content }}}} [/INST]
{{{{- else if eq .Role "assistant" }}}} {{{{ .Content }}}}</s>
{{{{- end }}}}
{{{{- end }}}}"""


CHAT_FORMATS = (
    ChatFormat("ChatML", ("<|im_start|>", "<|im_end|>"), ("<|im_start|>", "<|im_end|>"),
               ("<|im_start|>system\n", "<|im_end|>"), _CHATML),
    ChatFormat("Llama 3", ("<|start_header_id|>", "<|eot_id|>"),
               ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
               ("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"), _LLAMA3),
    ChatFormat("Gemma", ("<start_of_turn>", "<end_of_turn>"), ("<start_of_turn>", "<end_of_turn>"), ("", ""), _GEMMA),
    ChatFormat("Llama 2", ("[INST]", "<<SYS>>"), ("[INST]", "[/INST]"), ("<<SYS>>\n", "\n<</SYS>>"),
               _inst("<<SYS>>\n", "\n<</SYS>>")),
    ChatFormat("Mistral", ("[INST]", "[/INST]"), ("[INST]", "[/INST]"), ("", ""), _inst("", "")),
)  # fmt: skip


@dataclass(frozen=True)
class Chat:
    """What an artifact says of chatting: its Jinja template, the texts of its first and end tokens."""

    template: str | None
    bos: str | None
    eos: str | None

    @classmethod
    def of_gguf(cls, metadata: Mapping[str, Any]) -> Chat:
        """From the key/values of a GGUF file."""
        tokens = metadata.get("tokenizer.ggml.tokens") or []

        def text(which: str) -> str | None:
            index = metadata.get(f"tokenizer.ggml.{which}_token_id")
            token = tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None
            return token if isinstance(token, str) else None

        template = metadata.get("tokenizer.chat_template")
        return cls(template if isinstance(template, str) else None, text("bos"), text("eos"))


def recognise(template: str | None) -> ChatFormat | None:
    """The chat format of a Jinja template, None where it is none of those known."""
    # Mistral's later formats keep the [INST] of the earlier ones and add turns of their own.
    if template is None or "[SYSTEM_PROMPT]" in template:
        return None
    return next((known for known in CHAT_FORMATS if all(mark in template for mark in known.marks)), None)


def default_system(chat: Chat, known: ChatFormat) -> str | None:
    """The system prompt that the template adds when a conversation has none; None where there is none to be known.

    It is what stands in the system turn of a conversation without one, if giving that text as the system turn
    renders to the same. Llama 3.1's dates fail that test, as they should.
    """
    from exporter.verify.chat import outcome, render

    before, after = known.system
    names = {"bos_token": chat.bos, "eos_token": chat.eos}
    user = {"role": "user", "content": "packlight"}
    plain = outcome(lambda: render(chat.template or "", [user], names, prompt=True))
    if not before or before not in plain:
        return None
    text = plain.split(before, 1)[1].split(after, 1)[0]
    with_system = outcome(
        lambda: render(chat.template or "", [{"role": "system", "content": text}, user], names, prompt=True)
    )
    return text if text.strip() and with_system == plain else None


OLLAMA_KV_TYPES = ("q8_0", "q4_0")
"""Types of OLLAMA_KV_CACHE_TYPE beside f16, which it takes without being asked (docs/faq.md of Ollama)."""


def modelfile(entry: str, context: int, chat: Chat, kv_type: str | None = None) -> str:
    """The text of a Modelfile for the file `entry` beside it. kv_type: of the KV cache that it was verified with."""
    lines = [f"FROM ./{entry}", f"PARAMETER num_ctx {context}"]
    if kv_type in OLLAMA_KV_TYPES:
        server = f"OLLAMA_FLASH_ATTENTION=1 OLLAMA_KV_CACHE_TYPE={kv_type}"
        lines.insert(0, f"# Verified with a KV cache of {kv_type}: start the server with {server}")
    elif kv_type is not None:
        lines.insert(0, f"# Verified with a KV cache of {kv_type}, which Ollama does not have: it takes f16.")
    known = recognise(chat.template)
    stops = dict.fromkeys((*(known.stop if known else ()), *((chat.eos,) if chat.eos else ())))
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops if '"""' not in stop and "\n" not in stop]
    if known is None:
        why = "is of a format that packlight does not write as a Go template" if chat.template else "is missing"
        lines.append(f"# No TEMPLATE: the chat template {why}. Ollama uses the one in the GGUF where it knows it.")
        return "\n".join(lines) + "\n"
    lines += [f"# {known.name}, as the chat template in the GGUF.", f'TEMPLATE """{known.go}"""']
    system = default_system(chat, known)
    if system and '"""' not in system:
        lines += ["# The template's own default system prompt.", f'SYSTEM """{system}"""']
    return "\n".join(lines) + "\n"


def embedding_modelfile(entry: str) -> str:
    """The text of a Modelfile for an encoder that gives embeddings."""
    return f"FROM ./{entry}\n# An encoder: the server gives its embeddings at /api/embed.\n"


def _quoted(text: str) -> str:
    """A parameter's value in double quotes; Ollama reads no escapes, so a text with a quote takes three."""
    return f'"""{text}"""' if '"' in text else f'"{text}"'
