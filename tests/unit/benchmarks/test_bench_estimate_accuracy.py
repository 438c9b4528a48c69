"""The table of how near estimates come, and what llama-fit-params is understood to say."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import estimate_accuracy
from runtime.measurement import RunOptions


def row(**changed: Any) -> dict[str, Any]:
    """One cell of the result file: foreseen 100 bytes, found 100."""
    usual = {"model": "deep", "format": "gguf", "predicted_peak": 100, "peak": 100, "bytes_equal": True,
             "predicted_decode": 10.0, "decode": 10.0, "fit_params": 50, "commit": "a" * 40,
             "said": "b" * 40}  # fmt: skip
    return {**usual, **changed}


def test_the_table_counts_what_is_near_and_what_is_not() -> None:
    """Two cells of one model, one of them wrong in all; another format stands by itself."""
    wrong = row(predicted_peak=90, bytes_equal=False, predicted_decode=13.0, fit_params=150)
    onnx = row(format="onnx", predicted_decode=None, fit_params=None)
    lines = estimate_accuracy.table({"cells": [row(), wrong, onnx]}).splitlines()
    found = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]
    cells = {(model, format_name): rest for model, format_name, *rest in found}
    assert cells["deep", "gguf"] == [
        "2", "1", "-10.0% to +0.0%", "1", "-50.0% to +50.0%", "+0.0% to +30.0%", "1 of 2", f"`{'a' * 12}`",
        f"`{'b' * 12}`",
    ]  # fmt: skip
    assert cells["all", "onnx"] == ["1", "1", "+0.0% to +0.0%", "1", "", "", "", "", ""]


def test_cells_that_are_not_asked_for_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the commits that they are of, which older results say once for all."""
    whole = {"cells": [row(), row(model="wide"), row(format="onnx")], "commit": "c", "forecast": {"commit": "d"}}
    old = [{key: value for key, value in cell.items() if key not in ("commit", "said")} for cell in whole["cells"]]
    monkeypatch.setattr(estimate_accuracy.record, "load", lambda _name: {**whole, "cells": old})
    kept = estimate_accuracy._others(["deep"], ["gguf"])
    assert [(one["model"], one["format"]) for one in kept] == [("wide", "gguf"), ("deep", "onnx")]
    assert {(one["commit"], one["said"]) for one in kept} == {("c", "d")}
    monkeypatch.setattr(estimate_accuracy.record, "load", lambda _name: {**whole, "forecast": {"commit": "e"}})
    assert {one["said"] for one in estimate_accuracy._others(["deep"], ["gguf"])} == {"b" * 40}
    monkeypatch.setattr(estimate_accuracy.record, "load", lambda _name: None)
    assert estimate_accuracy._others(["deep"], ["gguf"]) == []


@pytest.mark.parametrize(
    ("said", "status", "found"),
    [("Host 100 40 9 \n", 0, 149 << 20), ("Host 100 40 9 \n", 1, None), ("no such model\n", 0, None)],
)
def test_what_fit_params_says(monkeypatch: pytest.MonkeyPatch, said: str, status: int, found: int | None) -> None:
    """MiB of the model, the cache and the compute buffers; nothing where it fails or says nothing."""
    asked: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.extend(command)
        return subprocess.CompletedProcess(command, status, said, "")

    monkeypatch.setattr(estimate_accuracy.subprocess, "run", run)
    monkeypatch.setattr(estimate_accuracy, "tool", lambda name: Path(name))
    options = RunOptions(context=512, batch=128, kv_type="q8_0")
    assert estimate_accuracy.fit_params(Path("x.gguf"), options) == found
    assert asked[asked.index("--ctx-size") + 1] == "512"
    assert asked[asked.index("--ubatch-size") + 1] == "128"
    assert asked[asked.index("--cache-type-v") + 1] == "q8_0"
