"""Recipes: those that ship are valid, and a bad file gives one line that names its line."""

from __future__ import annotations

import pytest

from exporter.recipe import list_recipes, load_recipe
from runtime.errors import UserError
from targets import get_target

RECIPE = """\
description: mine
format: gguf
calibration:
  chunks: 8
steps:
  - step: quantize
    preset: q4_k_m
    method: gptq
"""


def test_the_recipes_that_ship_name_presets_that_are():
    recipes = list_recipes()
    assert "gptq-q4_k_m" in recipes
    for name, recipe in recipes.items():
        assert recipe.description
        assert load_recipe(name) == recipe
        assert recipe.preset is None or recipe.preset in get_target(recipe.format).presets()


def test_every_step_has_a_runner():
    from typing import get_args

    from exporter.compress.registry import runner
    from exporter.steps import Step

    union, _ = get_args(Step)
    for step in get_args(union):
        (name,) = get_args(step.model_fields["step"].annotation)
        assert callable(runner(name))


def test_a_file_of_the_users(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(str(path))
    assert (recipe.format, recipe.calibration.chunks, recipe.calibration.tokens) == ("gguf", 8, 512)
    assert (recipe.steps[0].preset, recipe.steps[0].method) == ("q4_k_m", "gptq")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("format: gguf\n", "", "1: quantize needs a format, on whose grids the weights are put"),
        ("  - step: quantize", "  - step: magic", "6: steps.0: 'magic' is no step; known: 'quantize', 'prune'"),
        (
            "step: quantize\n    preset: q4_k_m\n    method: gptq",
            "method: gptq",
            "6: steps.0: has no step; write which",
        ),
        (
            "step: quantize\n    preset: q4_k_m\n    method: gptq",
            "step: prune\n    method: wanda",
            "6: steps.0: needs either sparsity or pattern",
        ),
        (
            "  - step: quantize",
            "  - step: quantize\n    preset: q8_0\n  - step: quantize",
            "1: quantize has to be the last",
        ),
        (
            "format: gguf",
            "format: exe",
            "2: format: input should be 'gguf', 'onnx', 'torchscript' or 'executorch', not 'exe'",
        ),
        ("chunks: 8", "chunks: 0", "4: calibration.chunks: input should be greater than or equal to 1, not '0'"),
        ("chunks: 8", "chunk: 8", "4: calibration.chunk: is no key of a recipe; take it out"),
        ("    preset: q4_k_m\n", "", "6: steps.0.preset: is missing; write it"),
        (
            "method: gptq",
            "method: magic",
            "8: steps.0.method: input should be 'rtn', 'gptq', 'gptq-natural' or 'autoround'",
        ),
        (
            "  - step: quantize",
            "  - step: factorize\n    keep: 0.5\n  - step: rotate\n  - step: quantize",
            "1: rotate has to stand before factorize: it changes whole matrices",
        ),
        (
            "  - step: quantize",
            "  - step: share\n    method: layers\n  - step: distill\n  - step: quantize",
            "1: distill has to stand before share: training makes equal weights differ",
        ),
        (
            "  - step: quantize",
            "  - step: distill\n    batch: 6\n    accumulate: 4\n  - step: quantize",
            "6: steps.0: batch 6 is no multiple of accumulate 4",
        ),
        (
            "  - step: quantize",
            "  - step: distill\n    rank: 4\n  - step: quantize",
            "6: steps.0: rank goes with train lora only",
        ),
        ("  chunks: 8", "  chunks: [8", "5: is not YAML ("),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path, old, new, message):
    path = tmp_path / "bad.yaml"
    assert old in RECIPE
    path.write_text(RECIPE.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        load_recipe(str(path))
    assert str(caught.value).startswith(f"{path}:{message}")
    assert "\n" not in str(caught.value)


def test_what_is_no_recipe_at_all(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "latin.yaml").write_bytes(b"description: \xe9\n")
    for name, message in (
        ("list.yaml", "list.yaml:1: is no recipe"),
        ("latin.yaml", "is not UTF-8"),
        ("none.yaml", "cannot be read"),
        ("gptq-q4_k", "unknown recipe '.*': did you mean gptq-q4_k_m"),
    ):
        with pytest.raises(UserError, match=message):
            load_recipe(name if name == "gptq-q4_k" else str(tmp_path / name))
