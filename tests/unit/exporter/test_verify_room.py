"""Whether the source fits into memory is known before the work."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.verify import VerifyOptions, refuse_too_large, room
from runtime.errors import UserError
from targets.facts import ModelFacts, TensorFact


def facts(source: str = "huggingface", n_params: int = 10**9) -> ModelFacts:
    tensor = TensorFact("w", (n_params,), "BF16", Path("x"), 0, 2 * n_params)
    return ModelFacts(source, Path("x"), "x", "org/x", {}, {"w": tensor})


def test_a_source_larger_than_memory_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "available_bytes", lambda: 3 * 10**9)
    with pytest.raises(UserError, match=r"in float32 needs 4,000\.0 MB .* 3,000\.0 MB .*--source-dtype bfloat16"):
        refuse_too_large(facts(), VerifyOptions())
    refuse_too_large(facts(), VerifyOptions(dtype="bfloat16"))
    refuse_too_large(facts("gguf"), VerifyOptions())
    with pytest.raises(UserError, match="use --no-verify here"):
        refuse_too_large(facts(n_params=2 * 10**9), VerifyOptions(dtype="float16"))


def test_nothing_is_refused_where_the_kernel_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unknown() -> None:
        asked.append(True)

    monkeypatch.setattr(room, "available_bytes", unknown)
    refuse_too_large(facts(), VerifyOptions())
    assert asked
