"""An encoder's matrices on the grids of a GGUF file: the codes that a recipe chose are those of the file."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.parity import emit
from support.recipes import run
from support.tiny_encoders import difference, padded, torch_outputs
from support.tiny_gguf_encoders import make_case

from runtime.errors import UserError
from runtime.measurement import RunOptions
from runtime.sessions import open_session
from targets.ongrid import GGML

if TYPE_CHECKING:
    from pathlib import Path

TEXT = {"source": "help", "chunks": 24, "tokens": 40}
RULES = [{"tensors": "token_embd.weight", "type": "q4_0"}]
QUANTIZE: dict[str, Any] = {"step": "quantize", "preset": "q4_0", "rules": RULES}
IDS = [2, 30, 40, 50, 60, 77, 31, 3]
NEAR = 0.05
"""Of the largest number: llama.cpp rounds what a matrix is multiplied by to 8 bits."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def on_grid(source: Path, out: Path, **step: Any) -> dict[str, Any]:
    (report,) = run(source, out, {**QUANTIZE, **step}, format="gguf", calibration=TEXT)
    return report


@pytest.mark.parametrize(
    "name",
    ["bert", "bert-classifier", "roberta", "xlm-roberta-ranker", "camembert", "distilbert", "modernbert",
     "modernbert-classifier"],
)  # fmt: skip
def test_the_file_has_the_codes_that_were_chosen(name: str, tmp_path: Path) -> None:
    source, out = make_case(name, tmp_path / "model"), tmp_path / "out"
    report = on_grid(source, out)
    (there := tmp_path / "artifact").mkdir()
    artifact = emit(out, there, preset="q4_0")
    tensors = gguf.GGUFReader(artifact.entry_path).tensors
    written = {one.name: bytes(one.data) for one in tensors if one.tensor_type.name == "Q4_0"}
    assert "token_embd.weight" in written
    assert len(written) > 4
    chosen = [one.tobytes() for one in load_file(out / GGML).values()]
    assert sorted(written.values()) == sorted(chosen)
    assert report["n_bytes"] == artifact.entry_path.stat().st_size
    session: Any
    with contextlib.closing(open_session(artifact, RunOptions(threads=1))) as session:
        found = session.encode(IDS)
    wanted = torch_outputs(out, *padded([IDS], 0))
    key = "logits" if "logits" in wanted else "last_hidden_state"
    assert difference(found[key], wanted[key][0]) < NEAR


def judged(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Labels, or embeddings: means of length 1."""
    if "logits" in outputs:
        return outputs["logits"]
    means = outputs["last_hidden_state"].mean(1)
    found: np.ndarray = means / np.linalg.norm(means, axis=-1, keepdims=True)
    return found


@pytest.mark.parametrize("name", ["bert", "bert-classifier"])
def test_codes_by_what_the_matrices_are_given_and_by_training(name: str, tmp_path: Path) -> None:
    """Each keeps more of the model than the one before it."""
    source = make_case(name, tmp_path / "model")
    training = {"updates": 60, "batch": 8, "learning_rate": 2e-4, "text": {**TEXT, "chunks": 160}}
    steps = {"rtn": {"method": "rtn"}, "gptq": {}, "trained": {"training": training}}
    away = {}
    for how, step in steps.items():
        on_grid(source, tmp_path / how, **step)
        texts = [[2, *map(int, row), 3] for row in np.random.default_rng(5).integers(5, 190, (24, 20))]
        ours, theirs = (judged(torch_outputs(one, *padded(texts, 0))) for one in (tmp_path / how, source))
        away[how] = float(np.square(ours - theirs).mean())
    assert away["trained"] < away["gptq"] < away["rtn"], away


@pytest.mark.parametrize(
    ("format_name", "step", "more", "message"),
    [
        (
            "onnx",
            {"preset": "int4", "rules": []},
            {},
            "quantize is for decoders, .* quantize with format: gguf, or exp",
        ),
        ("gguf", {"types": "measured"}, {}, "quantize with types measured is for decoders"),
        ("gguf", {}, {"calibration": {}}, "calibration: .* writes no text itself; name a text"),
    ],
)
def test_what_encoders_have_not(
    format_name: str, step: dict[str, Any], more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = make_case("bert", tmp_path / "model")
    with pytest.raises(UserError, match=message):
        run(source, tmp_path / "out", {**QUANTIZE, **step}, format=format_name, **{"calibration": TEXT, **more})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
