"""The Modelfile: its Go templates render as the models' own Jinja templates do."""

from __future__ import annotations

import re

import jinja2
import pytest

from exporter.report.modelfile import CHAT_FORMATS, Chat, default_system, modelfile, recognise

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
# Dates before the user's own system text: no text given as the system turn renders to the same.
LLAMA31 = (
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: 26 Jul 2024\\n\\n' }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}{{ '<|eot_id|>' }}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') + message['content'] + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set first = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set rest = messages %}{% set first = '' %}{% endif %}"
    "{% for message in rest %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + (first if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + '</s>' }}{% endif %}{% endfor %}"
)
MISTRAL = LLAMA2.replace("'<<SYS>>\\n' + ", "").replace("'\\n<</SYS>>\\n\\n'", "'\\n\\n'")
JINJA = {"ChatML": CHATML, "Llama 3": LLAMA3, "Gemma": GEMMA, "Llama 2": LLAMA2, "Mistral": MISTRAL}

USER = {"role": "user", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATIONS = [
    [SYSTEM, USER],
    [SYSTEM, USER, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "2 + 2?"}],
]

# What stands between the braces of our Go templates, in Jinja. Whitespace control is the same in both languages.
GO_TO_JINJA = {
    "$system := .System": "set ns = namespace(system=System)",
    "range $i, $_ := .Messages": "for m in Messages",
    "range .Messages": "for m in Messages",
    "$last := eq (len (slice $.Messages $i)) 1": "set last = loop.last",
    'if and $last (ne .Role "assistant")': "if last and m.role != 'assistant'",
    'if eq .Role "user"': "if m.role == 'user'",
    'else if eq .Role "assistant"': "elif m.role == 'assistant'",
    "if $system": "if ns.system",
    '$system = ""': "set ns.system = ''",
    ".Role": "= m.role",
    ".Content": "= m.content",
    "$system": "= ns.system",
}


def render_go(template: str, messages: list[dict[str, str]]) -> str:
    """The text that Go's text/template would give, by way of Jinja."""
    opened: list[str] = []

    def translate(match: re.Match[str]) -> str:
        dash, body = match[1], match[2].strip()
        if body == "end":
            return f"{{%{dash} end{opened.pop()} %}}"
        jinja = GO_TO_JINJA[body]
        if jinja.split()[0] in ("for", "if"):
            opened.append(jinja.split()[0])
        return f"{{{{{dash} {jinja[1:]} }}}}" if jinja.startswith("=") else f"{{%{dash} {jinja} %}}"

    source = re.sub(r"\{\{(-?)(.*?)\}\}", translate, template)
    assert not opened
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    return jinja2.Environment(keep_trailing_newline=True).from_string(source).render(Messages=messages, System=system)


def render_jinja(template: str, messages: list[dict[str, str]]) -> str:
    return jinja2.Environment().from_string(template).render(messages=messages, add_generation_prompt=True)


@pytest.mark.parametrize("known", CHAT_FORMATS, ids=lambda known: known.name)
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=("one turn", "two turns"))
def test_a_go_template_renders_as_the_jinja_template(known, messages):
    assert render_go(known.go, messages) == render_jinja(JINJA[known.name], messages)


@pytest.mark.parametrize("name", JINJA)
def test_formats_are_recognised(name):
    assert recognise(JINJA[name]).name == name


def test_the_last_assistant_turn_is_continued():
    messages = [USER, {"role": "assistant", "content": "Sure,"}]
    assert render_go(recognise(CHATML).go, messages).endswith("<|im_start|>assistant\nSure,<|im_end|>\n")


def test_default_system_prompts():
    assert default_system(Chat(CHATML, None, None), recognise(CHATML)) == "You are a helpful AI assistant named SmolLM."
    assert default_system(Chat(LLAMA3, None, None), recognise(LLAMA3)) is None
    assert default_system(Chat(LLAMA31, None, None), recognise(LLAMA31)) is None
    assert default_system(Chat(GEMMA, None, None), recognise(GEMMA)) is None


def test_a_whole_modelfile():
    text = modelfile("SmolLM2-135M-Q4_K_M.gguf", 2048, Chat(CHATML, "<|im_start|>", "<|im_end|>"))
    assert text == (
        "FROM ./SmolLM2-135M-Q4_K_M.gguf\n"
        "PARAMETER num_ctx 2048\n"
        'PARAMETER stop "<|im_start|>"\n'
        'PARAMETER stop "<|im_end|>"\n'
        "# ChatML, as the chat template in the GGUF.\n"
        'TEMPLATE """{{- range $i, $_ := .Messages }}\n'
        "{{- $last := eq (len (slice $.Messages $i)) 1 }}<|im_start|>{{ .Role }}\n"
        "{{ .Content }}<|im_end|>\n"
        '{{ if and $last (ne .Role "assistant") }}<|im_start|>assistant\n'
        "{{ end }}\n"
        '{{- end }}"""\n'
        "# The template's own default system prompt.\n"
        'SYSTEM """You are a helpful AI assistant named SmolLM."""\n'
    )


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (None, "is missing"),
        ("{{ messages }}", "is of a format that packlight does not write as a Go template"),
        ("[SYSTEM_PROMPT] [INST] [/INST]", "is of a format that packlight does not write as a Go template"),
    ],
)
def test_no_template_line_for_an_unknown_format(template, why):
    assert modelfile("m.gguf", 512, Chat(template, None, "</s>")) == (
        "FROM ./m.gguf\n"
        "PARAMETER num_ctx 512\n"
        'PARAMETER stop "</s>"\n'
        f"# No TEMPLATE: the chat template {why}. Ollama uses the one in the GGUF where it knows it.\n"
    )


def test_chat_of_gguf_metadata():
    metadata = {
        "tokenizer.chat_template": "T",
        "tokenizer.ggml.tokens": ["<s>", "</s>", b"\xff"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    assert Chat.of_gguf(metadata) == Chat("T", "<s>", "</s>")
    assert Chat.of_gguf({**metadata, "tokenizer.ggml.eos_token_id": 2}) == Chat("T", "<s>", None)
    assert Chat.of_gguf({}) == Chat(None, None, None)
