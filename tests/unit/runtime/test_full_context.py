"""Every engine takes a context to its last token, several turns, and a load that goes on."""

from __future__ import annotations

import importlib.util
import io
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from support.parity import emit

from runtime.errors import EngineError
from runtime.measurement import RunOptions
from runtime.sessions import MODULES, open_session
from runtime.worker import Answers, decoding, fill_context, run_conversation

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT = 48


@pytest.mark.parametrize(
    ("format_name", "preset"),
    [("gguf", "q8_0"), ("onnx", "int4"), ("torchscript", "int8"), ("ptl", "int8"), ("executorch", "fp32")],
)
def test_to_the_last_token_and_not_beyond(format_name: str, preset: str, tiny_llama: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec(MODULES[format_name]) is None:
        pytest.skip(f"{MODULES[format_name]} is not installed")
    artifact = emit(tiny_llama, tmp_path, format_name, preset)
    context = artifact.context_length if format_name == "executorch" else CONTEXT
    answers = Answers(io.StringIO())
    with closing(open_session(artifact, RunOptions(threads=1, context=context, batch=16))) as opened:
        session: Any = opened
        assert fill_context(session, context, 8, answers) > 0
        assert session.n_past == context
        if session.n_context == context:  # llama.cpp makes it longer than it was asked to
            with pytest.raises(EngineError, match="do not fit"):
                session.decode(1)
        turns = run_conversation(session, context, 6, answers)
        assert [turn.now_bytes > 0 for turn in turns] == [True] * 6
        assert context - 6 < session.n_past <= context
        begin, step = decoding(session, context)
        begin()
        assert sum(step()[0] for _ in range(context)) == context
