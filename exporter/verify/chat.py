"""Chat templates: rendering one as transformers renders it, and the conversations that are compared."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jinja2 import Environment
    from jinja2.parser import Parser

Conversation = tuple[dict[str, str], ...]


def _conversation(*turns: tuple[str, str]) -> Conversation:
    return tuple({"role": role, "content": content} for role, content in turns)


CONVERSATIONS: tuple[Conversation, ...] = (
    _conversation(("user", "Hello")),
    _conversation(("system", "You answer in one word."), ("user", "What is the capital of France?")),
    _conversation(("user", "2 + 2?"), ("assistant", "4"), ("user", "  And times three? \n")),
    _conversation(
        ("system", "Réponds en français.\n\nSois bref."),
        ("user", "日本語は話せますか? 🙂"),
        ("assistant", "はい、少し。\n```python\nprint('{{ hi }}')\n```"),
        ("user", "e\u0301t\u00e9 <b>&amp;</b> \"quoted\" 'single'"),
    ),
)
"""User only, system and user, several turns, and all of it in several scripts with markup and code."""


def render(template: str, conversation: Sequence[dict[str, str]], names: dict[str, str | None], *, prompt: bool) -> str:
    """The text of a conversation under a Jinja chat template, in the environment that transformers gives it.

    names: texts of "bos_token" and "eos_token"; None leaves the name undefined
    prompt: end with the header of the assistant's turn (`add_generation_prompt`)
    Raises what the template raises: see `outcome`.
    """
    given = {name: text for name, text in names.items() if text is not None}
    turns = [dict(turn) for turn in conversation]  # a template must not reach the caller's own
    text: str = _environment().from_string(template).render(
        messages=turns, tools=None, documents=None, add_generation_prompt=prompt, **given
    )  # fmt: skip
    return text


def outcome(rendering: Callable[[], str]) -> str:
    """What a rendering gives: its text, or the error that the template raised as a text of its own.

    Templates refuse conversations on purpose (Gemma's has no system turn); refusing alike is parity.
    """
    from jinja2.exceptions import TemplateError

    try:
        return rendering()
    except (TemplateError, TypeError, ValueError) as error:
        return f"[the template refused: {type(error).__name__}: {error}]"


def _environment() -> Environment:
    """Sandboxed, because a template is code from whoever published the model."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's text for training; for rendering it is its body."""

        tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

        def parse(self, parser: Parser) -> nodes.Node:
            """The body alone."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: object, ensure_ascii: bool = False, **options: Any) -> str:
        # Jinja2's own filter escapes HTML characters, which would change what the model reads.
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment
