"""`export` with types that the user names, and with an importance matrix."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.preset_models import importance_of
from typer.testing import CliRunner

from exporter.cli.app import app
from exporter.cli.type_options import Types
from runtime.errors import UserError
from targets.gguf.reading import read_gguf_facts, read_gguf_metadata

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def export(model: Path, out: Path, *arguments: object) -> str:
    """The output of a run that writes OUT and nothing else, or fails."""
    command = ["export", str(model), "-o", str(out), "--no-verify", "--no-measure", *map(str, arguments)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code in (0, 2), done.output
    assert out.exists() == (done.exit_code == 0), done.output
    return done.output


def test_a_rule_is_a_pattern_and_a_type() -> None:
    assert Types(rule=[r"blk\.[0-3]\.ffn_down=q6_k", "a=b=f16"]).choice().rules == (
        (r"blk\.[0-3]\.ffn_down", "q6_k"), ("a=b", "f16"),
    )  # fmt: skip


@pytest.mark.parametrize("rule", ["ffn_down", "=q6_k", "ffn_down="])
def test_half_a_rule_is_refused(rule: str) -> None:
    with pytest.raises(UserError, match="is no PATTERN=TYPE; write 'ffn_down=q6_k', for example"):
        Types(rule=[rule]).choice()


def test_an_export_by_rules_and_an_importance_matrix(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model, out = tiny_model_dir("llama", hidden=256), tmp_path / "out"
    importance = importance_of(model, tmp_path / "imatrix.gguf")
    rules = ("--rule", r"blk\.0\..*=iq3_s", "--rule", "attn_q=q4_k", "--embedding-type", "q5_0")
    export(model, out, "--quant", "IQ2_M", "--imatrix", importance, *rules)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    path = out / manifest["entry"]
    types = {name: fact.dtype for name, fact in read_gguf_facts(path, "").tensors.items()}
    assert (types["blk.0.attn_q.weight"], types["blk.1.attn_q.weight"]) == ("IQ3_S", "Q4_K")
    assert (types["token_embd.weight"], types["blk.1.ffn_up.weight"]) == ("Q5_0", "IQ2_S")
    assert {e.key: e.value for e in read_gguf_metadata(path)}["quantize.imatrix.file"] == str(importance)
    assert "IQ3_S" in (out / "report.html").read_text(encoding="utf-8")


def test_a_short_name_is_llama_quantizes(tiny_llama: Path, tmp_path: Path) -> None:
    export(tiny_llama, tmp_path / "out", "--quant", "Q4_K")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["quant"] == "q4_k_m"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--imatrix", "nothing.gguf"], "nothing.gguf: cannot be read"),
        (["--rule", "ffn_dwon=q8_0"], "--rule ffn_dwon=q8_0: is found in no tensor's name"),
        (["--rule", "ffn_down"], "--rule ffn_down: is no PATTERN=TYPE"),
        (["--output-type", "q9"], "--output-type: 'q9' is no type of ggml; known: f32, f16"),
        (["--rule", "ffn_down=q6_k"], "blocks of 256 do not divide rows of 128, those of blk.0.ffn_down.weight"),
        (["--format", "onnx", "--pure"], "--format onnx: --imatrix, --rule, --pure, --output-type and"),
        (["--recipe", "best-q4_k_m", "--pure"], "--recipe best-q4_k_m: chooses the types itself"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    arguments: list[str], said: str, tiny_llama: Path, tmp_path: Path
) -> None:
    output = export(tiny_llama, tmp_path / "out", "-q", *arguments)
    assert said in output
    assert output.startswith("error: ")
    assert output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_preset_that_needs_an_importance_matrix_says_how_to_make_it(
    tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_model_dir("llama", hidden=256)
    output = export(model, tmp_path / "out", "-q", "--quant", "iq2_xxs")
    assert f"make one with 'packlight imatrix {model} -o imatrix.gguf', and add --imatrix imatrix.gguf" in output
    assert output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_rules_of_a_recipe_may_be_regular_expressions(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    content = "format: gguf\nsteps:\n  - {step: quantize, preset: q4_0, method: rtn, rules: [%s]}\n"
    recipe.write_text(content % r"{regex: 'blk\.[0]\.ffn', type: q5_1}, {tensors: '*attn_q*', type: q8_0}")
    export(tiny_llama, tmp_path / "out", "--recipe", recipe)
    path = next((tmp_path / "out").glob("*.gguf"))
    types = {name: fact.dtype for name, fact in read_gguf_facts(path, "").tensors.items()}
    assert (types["blk.0.ffn_up.weight"], types["blk.1.ffn_up.weight"]) == ("Q5_1", "Q4_0")
    assert types["blk.1.attn_q.weight"] == "Q8_0"
    recipe.write_text(content % "{regex: 'ffn_dwon', type: q5_1}")
    assert "the rule for ffn_dwon is for no tensor" in export(tiny_llama, tmp_path / "bad", "--recipe", recipe, "-q")
    recipe.write_text(content % "{regex: 'ffn_[', type: q5_1}")
    assert "is no regular expression" in export(tiny_llama, tmp_path / "bad", "--recipe", recipe, "-q")
    recipe.write_text(content % "{type: q5_1}")
    assert "needs either tensors or regex" in export(tiny_llama, tmp_path / "bad", "--recipe", recipe, "-q")


def test_a_recipe_does_not_choose_codes_of_a_lattice(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text("format: gguf\nsteps:\n  - {step: quantize, preset: iq3_s, method: rtn}\n")
    output = export(tiny_llama, tmp_path / "out", "--recipe", recipe, "-q")
    assert "preset iq3_s: codes of iq3_s are chosen by ggml alone; leave quantize out" in output
