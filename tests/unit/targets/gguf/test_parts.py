"""A model in several files: llama.cpp's names, cuts and keys, and reading it as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.gguf_fields import build, scalar, string

from runtime.errors import ModelError
from targets.gguf.keyvalue import KeyValue
from targets.gguf.parts import PartName, cut, part_name, part_of, split_keys
from targets.gguf.reading import read_gguf_facts, read_gguf_metadata, read_gguf_tensors

if TYPE_CHECKING:
    from pathlib import Path


def test_names_as_llama_cpp_has_them(tmp_path: Path) -> None:
    # the example in llama.h, beside llama_split_path: ("/models/ggml-model-q4_0", 2, 4)
    assert part_name("ggml-model-q4_0", 2, 4) == "ggml-model-q4_0-00003-of-00004.gguf"
    assert part_of(tmp_path / "ggml-model-q4_0-00003-of-00004.gguf") == PartName("ggml-model-q4_0", 2, 4)
    assert part_of(tmp_path / "a-00001-of-00002-00003-of-00004.gguf") == PartName("a-00001-of-00002", 2, 4)
    for other in ("model.gguf", "m-0001-of-0002.gguf", "-00001-of-00002.gguf", "m-00001-of-00002.gguf.part"):
        assert part_of(tmp_path / other) is None


def test_keys_in_the_order_that_gguf_split_leaves_them() -> None:
    # split.count is set again when the parts are counted, which puts it behind the others
    assert split_keys(1, 3, 290) == [
        KeyValue("split.no", 1, "UINT16"), KeyValue("split.tensors.count", 290, "INT32"),
        KeyValue("split.count", 3, "UINT16"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "most", "parts"),
    [
        ([32, 32, 32], 96, [[32, 32, 32]]),
        ([32, 32, 32], 95, [[32, 32], [32]]),
        ([32, 32, 32], 64, [[32, 32], [32]]),
        ([96, 32, 32], 64, [[96], [32, 32]]),
        ([32, 96, 32], 64, [[32], [96], [32]]),
        ([32], 1, [[32]]),
    ],
)
def test_cuts_by_hand(sizes: list[int], most: int, parts: list[list[int]]) -> None:
    assert [sizes[part] for part in cut(sizes, most)] == parts


def write_parts(directory: Path, **changed: object) -> Path:
    """Three parts of one tensor each; `changed` are other keys of the second, and names of tensors."""
    for number in range(3):
        n_tensors = changed.get("n_tensors", 3)
        keys = [
            scalar("split.no", 2, "<H", changed.get("no", number) if number == 1 else number),
            scalar("split.tensors.count", 5, "<i", n_tensors),
            scalar("split.count", 2, "<H", changed.get("count", 3) if number == 1 else 3),
        ]
        names = ["a", changed.get("name", "b"), "c"]
        model = [string("general.architecture", "llama"), *keys] if number == 0 else keys
        file = build(model, [(str(names[number]), [8], 0)])
        file.data = bytes([number]) * len(file.data)
        (directory / part_name("Tiny", number, 3)).write_bytes(file.encoded())
    return directory / part_name("Tiny", 0, 3)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_gguf_facts(path, "asked")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parts_are_one_model(tmp_path: Path) -> None:
    first = write_parts(tmp_path)
    facts = read_gguf_facts(first, "asked")
    assert (facts.name, facts.path, facts.requested) == ("Tiny", first, "asked")
    assert {name: fact.file.name for name, fact in facts.tensors.items()} == {
        "a": "Tiny-00001-of-00003.gguf", "b": "Tiny-00002-of-00003.gguf", "c": "Tiny-00003-of-00003.gguf",
    }  # fmt: skip
    for number, fact in enumerate(facts.tensors.values()):
        assert fact.file.read_bytes()[fact.offset :][: fact.n_bytes] == bytes([number]) * 32
    assert next(entry.key for entry in read_gguf_metadata(first)) == "general.architecture"
    assert [fact.name for fact in read_gguf_tensors(tmp_path / part_name("Tiny", 2, 3))] == ["c"]


def test_what_is_wrong_with_parts_is_named(tmp_path: Path) -> None:
    first = write_parts(tmp_path)
    second = tmp_path / part_name("Tiny", 1, 3)
    assert refusal(second).endswith("is part 2 of 3 of a model; name the first, Tiny-00001-of-00003.gguf")
    renamed = tmp_path / "renamed.gguf"
    first.rename(renamed)
    assert "is one of 3 parts of a model; give it the name that it had: NAME-00001-of-00003.gguf" in refusal(renamed)
    renamed.rename(first)
    second.unlink()
    assert refusal(first).startswith(f"{second}: is missing, part 2 of 3 of the model")


@pytest.mark.parametrize("changed", [{"no": 2}, {"count": 4}])
def test_a_part_of_another_model_is_refused(changed: dict[str, object], tmp_path: Path) -> None:
    assert "is not part 2 of 3, as its name says" in refusal(write_parts(tmp_path, **changed))


def test_tensors_are_counted(tmp_path: Path) -> None:
    assert "hold 3 tensors, 2 of different names, and not 3" in refusal(write_parts(tmp_path, name="a"))
    assert "hold 3 tensors, 3 of different names, and not 4" in refusal(write_parts(tmp_path, n_tensors=4))


def test_sixty_thousand_parts_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / part_name("x", 0, 65535)
    path.write_bytes(build([scalar("split.count", 2, "<H", 65535)], [("t", [1], 0)]).encoded())
    assert "x-00002-of-65535.gguf: is missing" in refusal(path)
