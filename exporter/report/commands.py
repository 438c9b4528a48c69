"""The commands that find the same as a report, as far as it records how it was made."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.report.scale import number
from runtime.measurement import RunOptions, Trials

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exporter.report.stored import Found

TEXTS = 8
"""Texts of an encoder in one of --chunks."""
DEFAULT_TEXT = "pydoc_data.topics of"
"""How the name of the text begins that is compared on where nobody names one."""

Json = dict[str, Any]


def commands(found: Found) -> Iterator[str]:
    """What made the report, and what measures, verifies and shows the same again.

    A bare file does not say what it was made from, and no page is made of it alone: it is only measured.
    """
    artifact, document = found.artifact, found.document
    measured, drift = document.get("measurement") or {}, document.get("drift") or {}
    what = artifact.entry if found.bare else artifact.root.name or "."
    yield str(document["provenance"]["command"])
    yield shlex.join(["packlight", "measure", what, *_measuring(found, measured)])
    if not found.bare:
        yield shlex.join(["packlight", "verify", what, "--against", artifact.source, *_verifying(drift)])
        yield shlex.join(["packlight", "report", what, "-o", f"{Path(what).name or 'page'}.html"])


def _measuring(found: Found, measured: Json) -> Iterator[str]:
    """Context and threads as they were, and what differs from the defaults."""
    options, trials, encoder = measured.get("options") or {}, measured.get("trials") or {}, found.of_encoder
    usual = Trials().resolved(encoder=encoder)
    yield from (f"--{name}={options[name]}" for name in ("context", "threads") if options.get(name))
    if options.get("batch", RunOptions.batch) != RunOptions.batch:
        yield f"--batch={options['batch']}"
    if options.get("mmap") is False:
        yield "--no-mmap"
    if options.get("kv_type") not in (None, RunOptions().kv_type_for(found.artifact.contract)):
        yield f"--kv-type={options['kv_type']}"
    for name, key, default in (
        ("trials", "count", usual.count), ("prompt-tokens", "prompt_tokens", usual.prompt_tokens),
        ("decode-tokens", "decode_tokens", usual.decode_tokens), ("turns", "turns", usual.turns),
    ):  # fmt: skip
        if trials.get(key) not in (None, default):
            yield f"--{name}={trials[key]}"
    if trials.get("fill_context"):
        yield "--fill-context"
    if seconds := number(trials.get("sustained_s")):
        yield f"--sustained={seconds:.10g}s"
    if on := (measured.get("host") or {}).get("on"):
        yield f"--on={on}"
        if on.startswith("adb:"):
            yield f"--engine={_tools(str(found.document['provenance']['command']))}"


def _tools(command: str) -> str:
    """Where the engine's tools for the phone were, as the command that made the report has it."""
    with contextlib.suppress(ValueError):  # not written as a shell would read it
        words = shlex.split(command)
        for word, behind in zip(words, [*words[1:], ""], strict=True):
            if word == "--engine":
                return behind
            if word.startswith("--engine="):
                return word.removeprefix("--engine=")
    return "DIR"


def _verifying(drift: Json) -> Iterator[str]:
    """How much was compared, and on which text."""
    if chunks := number(drift.get("n_chunks")) or -(-(number(drift.get("n_texts")) or 0) // TEXTS):
        yield f"--chunks={chunks:.0f}"
    if drift and not str(drift["text_name"]).startswith(DEFAULT_TEXT):
        yield f"--text={drift['text_name']}"
