from __future__ import annotations

import pytest
from jinja2.exceptions import SecurityError, TemplateError

from exporter.verify.chat import CONVERSATIONS, outcome, render

TURNS = ({"role": "user", "content": "<b>é & 'x'"},)
NAMES = {"bos_token": "<s>", "eos_token": None}


def text(template: str, prompt: bool = False) -> str:
    return render(template, TURNS, NAMES, prompt=prompt)


def test_environment_is_that_of_transformers() -> None:
    assert text("{% for m in messages %}\n  {%- if true %}{{ m.role }}{% endif %}\n{% endfor %}\nend") == "userend"
    assert text("  {% if true %}\na\n  {% endif %}\nb") == "a\nb"  # lstrip_blocks, trim_blocks
    assert text("{{ messages[0] | tojson }}") == '{"role": "user", "content": "<b>é & \'x\'"}'
    assert text("{{ messages | tojson(indent=1) }}").startswith('[\n {\n  "role"')
    assert text("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert text("{{ bos_token }}|{{ eos_token }}|{{ eos_token is defined }}") == "<s>||False"
    assert len(text("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert text("{% generation %}a{{ messages[0].role }}{% endgeneration %}") == "auser"
    assert text("{% if add_generation_prompt %}p{% endif %}", prompt=True) == "p"
    assert text("{% if tools %}t{% endif %}{{ documents is none }}") == "True"


def test_templates_are_sandboxed() -> None:
    with pytest.raises(SecurityError):
        text("{{ messages.append(1) }}")
    with pytest.raises(SecurityError):
        text("{{ ''.__class__.__mro__ }}")


def test_refusals_become_text_that_can_be_compared() -> None:
    with pytest.raises(TemplateError):
        text("{{ raise_exception('no system role') }}")
    refused = outcome(lambda: text("{{ raise_exception('no system role') }}"))
    assert "no system role" in refused
    assert refused != outcome(lambda: text("{{ raise_exception('other') }}"))


def test_conversations_cover_what_the_brief_names() -> None:
    roles = {tuple(turn["role"] for turn in conversation) for conversation in CONVERSATIONS}
    assert {("user",), ("system", "user"), ("user", "assistant", "user")} <= roles


def test_equal_to_transformers_on_a_real_environment() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = (
        "{{- bos_token }}\n{%- for m in messages %}\n    {%- if loop.first and m.role == 'system' %}\n"
        "{{ m.content | trim | tojson }}\n  {% continue %}{% endif %}\n[{{ m.role }}] {{ m.content }}\n{% endfor %}\n"
        "{% if add_generation_prompt %}\n>{% endif %}"
    )
    for conversation in CONVERSATIONS:
        for prompt in (False, True):
            theirs, _ = render_jinja_template(
                [list(conversation)], chat_template=template, add_generation_prompt=prompt, bos_token="<s>"
            )
            assert render(template, conversation, NAMES, prompt=prompt) == theirs[0]
