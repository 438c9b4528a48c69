"""Fixtures that every test may use: tiny models of each family, made once in a session."""

from __future__ import annotations

import os

# Before any engine is loaded: no network, and OpenMP threads that spin only briefly where they wait (runtime/openmp).
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("GOMP_SPINCOUNT", "500")
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from typing import TYPE_CHECKING, Any

import pytest
from support.tiny_models import FAMILIES, make_tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from _pytest.tmpdir import TempPathFactory


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_users(tmp_path_factory: TempPathFactory) -> None:
    """What packlight keeps for later goes into the tests' own directory."""
    os.environ["PACKLIGHT_HOME"] = str(tmp_path_factory.mktemp("packlight-home"))


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: TempPathFactory) -> Callable[..., Path]:
    """Factory: `tiny_model_dir("llama", hidden=256, …)` returns a model directory, made once for each set of options.

    The directory is shared: copy it before changing a file in it.
    """
    made: dict[tuple[Any, ...], Path] = {}

    def make(family: str, **options: Any) -> Path:
        key = (family, repr(sorted(options.items())))
        if key not in made:
            made[key] = make_tiny(family, tmp_path_factory.mktemp(f"tiny-{family}"), **options)
        return made[key]

    return make


@pytest.fixture(scope="session", params=FAMILIES)
def tiny_any(request: pytest.FixtureRequest, tiny_model_dir: Callable[..., Path]) -> Path:
    """Every family in turn."""
    return tiny_model_dir(request.param)


@pytest.fixture(scope="session")
def tiny_llama(tiny_model_dir: Callable[..., Path]) -> Path:
    """SmolLM2-like: tied, grouped heads, byte-level BPE that splits digits."""
    return tiny_model_dir("llama")


@pytest.fixture(scope="session")
def tiny_llama3(tiny_model_dir: Callable[..., Path]) -> Path:
    """Llama 3: rope scaling, untied, list of end tokens."""
    return tiny_model_dir("llama3")


@pytest.fixture(scope="session")
def tiny_llama2(tiny_model_dir: Callable[..., Path]) -> Path:
    """Llama 2: SentencePiece, as many key heads as query heads."""
    return tiny_model_dir("llama2")


@pytest.fixture(scope="session")
def tiny_mistral(tiny_model_dir: Callable[..., Path]) -> Path:
    """Mistral 7B v0.3: SentencePiece with control tokens, named chat templates."""
    return tiny_model_dir("mistral")


@pytest.fixture(scope="session")
def tiny_qwen2(tiny_model_dir: Callable[..., Path]) -> Path:
    """Qwen2.5: biases on q, k and v, padded embedding rows."""
    return tiny_model_dir("qwen2")


@pytest.fixture(scope="session")
def tiny_qwen3(tiny_model_dir: Callable[..., Path]) -> Path:
    """Qwen3: q and k norms, head_dim that is not hidden / heads."""
    return tiny_model_dir("qwen3")


@pytest.fixture(scope="session")
def tiny_gemma3(tiny_model_dir: Callable[..., Path]) -> Path:
    """Gemma 3 text: sliding windows, four norms a layer, embedding one row shorter than the tokenizer."""
    return tiny_model_dir("gemma3")
