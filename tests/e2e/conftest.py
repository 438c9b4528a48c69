"""The real model, written out once, for every test of this directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.smollm2 import smollm2

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory in bf16; written once, found again after."""
    return smollm2()
