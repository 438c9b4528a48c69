"""How small a file gets, and what it keeps: the seeds' promise of a tenth of the bytes and 97 % of the answers.

    python -m benchmarks.small_files

Exports all-MiniLM-L6-v2 to ONNX and GGUF in several precisions and has `packlight verify` judge each; what
quality_per_byte, compression_methods, training_recipes and training_encoders have found of other files stands beside
it, each with the commit that it was found at. Of all files those are shown than which no smaller one keeps more.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import compression_methods, record, training_encoders, training_recipes
from benchmarks.models import minilm
from benchmarks.paths import CACHE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

KINDS = (
    *(("onnx", quant) for quant in ("fp16", "int8", "dynamic-int8", "int4")),
    *(("gguf", quant, "--pure") for quant in ("q8_0", "q5_0", "iq4_nl", "q4_0")),
)
"""Format, precision, and options more."""
SMALLER, KEPT = 10, 0.97
"""Times smaller than float32, and the share that is to be kept in that."""


@dataclass(frozen=True)
class File:
    """what: in words; n_bytes: of it; kept: same top-1, or rank correlation; commit: that it was found at"""

    what: str
    n_bytes: int
    kept: float
    commit: str


def decoders() -> Iterator[File]:
    """Files of the off-grid SmolLM2, of what other benchmarks have kept."""
    if (content := record.load("quality_per_byte")) is not None:
        for row in content["rows"]:
            if row["model"] == "offgrid":
                name = f"GPTQ, types by measure, bytes of {row['preset'].upper()}"
                yield File(name, row["ours"]["bytes"], row["ours"]["same_top1"], content["commit"])
    if (content := record.load("compression_methods")) is not None:
        for key, case in content["cases"].items():
            if "bytes" in case and key in compression_methods.CASES:
                what = compression_methods.CASES[key].what
                what = key if what.startswith("the same") else what  # as the row above it
                yield File(what, case["bytes"], case["same_top1"], content["commit"])
    if (content := record.load("training_recipes")) is not None:
        for key, case in content["cases"].items():
            known = training_recipes.CASES[key]
            then = f", then {known.then['preset'].upper()} by GPTQ" if known.then is not None else ""
            file = case.get("file", case)["after"]
            if file["n_bytes"] < 2 * case["n_params"]:  # and not in floats
                yield File(f"{known.what}, trained{then}", file["n_bytes"], file["same_top1"], case["commit"])


def encoders(content: dict[str, Any]) -> Iterator[File]:
    """Files of MiniLM."""
    for row in content["rows"]:
        format_name, quant, *more = row["kind"]
        what = " ".join([format_name.upper(), quant.upper() if format_name == "gguf" else quant, *more])
        yield File(what, row["n_bytes"], row["rank correlation"], content["commit"])
    if (trained := record.load("training_encoders")) is not None:
        for key, case in trained["cases"].items():
            known, after = training_encoders.CASES[key], case["after"]
            what = f"{known.what}, trained, {known.kind[0].upper()}"
            yield File(what, after["n_bytes"], after["rank correlation"], case["commit"])


def best(files: Iterable[File]) -> list[File]:
    """Those than which no smaller one keeps more, the largest first."""
    found: list[File] = []
    for file in sorted(files, key=lambda one: (one.n_bytes, -one.kept)):
        if not found or file.kept > found[-1].kept:
            found.append(file)
    return found[::-1]


def table(content: dict[str, Any]) -> str:
    """The curves as Markdown, and how far from the promise each ends."""
    parts = []
    for model, kept, n_bytes, files in (
        ("SmolLM2-135M off-grid", "same top-1", content["decoder_bytes"], decoders()),
        ("all-MiniLM-L6-v2", "rank correlation", content["encoder_bytes"], encoders(content)),
    ):
        curve = best(files)
        lines = [f"| {model} | MB | of float32 | {kept} | commit |", "| --- | ---: | ---: | ---: | --- |"]
        lines += [
            f"| {one.what} | {one.n_bytes / 1e6:.1f} | 1/{n_bytes / one.n_bytes:.1f} | {one.kept:.1%} "
            f"| `{one.commit[:12]}` |"
            for one in curve
        ]
        parts.append("\n".join([*lines, "", _verdict(curve, n_bytes)]))
    return "\n\n".join(parts)


def _verdict(curve: list[File], n_bytes: int) -> str:
    """Of the promise in a sentence."""
    keeping = [n_bytes / one.n_bytes for one in curve if one.kept >= KEPT]
    small = [one.kept for one in curve if n_bytes / one.n_bytes >= SMALLER]
    if any(times >= SMALLER for times in keeping):
        return f"A file of 1/{max(keeping):.1f} keeps {KEPT:.0%}."
    first = f"the smallest that keeps {KEPT:.0%} is 1/{max(keeping):.1f}" if keeping else f"none keeps {KEPT:.0%}"
    second = f"one of 1/{SMALLER} keeps {max(small):.1%}" if small else f"none is 1/{SMALLER}"
    return f"**✗ Not both: {first}, {second}.**"


def main() -> None:
    """Export, judge, print the table, write the result. What was not reached is said, and no failure."""
    content: dict[str, Any] = record.provenance()
    content["decoder_bytes"] = 4 * 134_515_008
    content["encoder_bytes"] = (minilm() / "model.safetensors").stat().st_size
    with tempfile.TemporaryDirectory(dir=CACHE) as room:
        content["rows"] = [
            {"kind": kind, **training_encoders.judged_file(minilm(), kind, Path(room) / kind[1])} for kind in KINDS
        ]
    record.save("small_files", content)
    print(table(content))


if __name__ == "__main__":
    main()
