"""The real model, written out once, for every test of this directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory in bf16."""
    subprocess.run([sys.executable, "-m", "benchmarks.models", "smollm2"], cwd=ROOT, check=True, capture_output=True)
    return ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"
