"""The model card: README.md with front matter that a hub reads, the numbers, and how to run the file."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from exporter.report.table import markdown_table
from runtime.gguf_kind import POOLINGS
from runtime.sessions.base import is_encoder, task_of
from runtime.units import format_bytes
from targets.gguf.reading import read_gguf_metadata
from targets.pooling import Pooling, read_pooling

if TYPE_CHECKING:
    from exporter.report.report import Report
    from runtime.artifact import Artifact
    from runtime.measurement import MemorySplit, ResidentKinds
    from targets.facts import ModelFacts

_HERE = Path(__file__).parent
_KEPT_KEYS = ("license", "license_name", "license_link", "language", "pipeline_tag", "base_model", "datasets")
_JS_DTYPES = {
    "model.onnx": "fp32", "model_fp16.onnx": "fp16", "model_int8.onnx": "int8", "model_q4.onnx": "q4",
    "model_quantized.onnx": "q8",
}  # fmt: skip
"""What transformers.js calls the precision that it finds in a file of that name."""

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def front_matter(readme: str) -> dict[str, str]:
    """Top-level entries of a card's YAML front matter that hold for a quantized copy too, each as its own lines.

    Nothing is parsed: an entry is the line of its key and the indented or listed lines below it, copied as they are.
    """
    match = re.match(r"---\r?\n(.*?)^---\s*$", readme, re.DOTALL | re.MULTILINE)
    entries: dict[str, list[str]] = {}
    key = ""
    for line in match[1].splitlines() if match else []:
        if found := re.match(r"([A-Za-z_][\w-]*)\s*:", line):
            key = found[1]
            entries[key] = [line.rstrip()]
        elif key and line.startswith((" ", "-")) and line.strip():
            entries[key].append(line.rstrip())
    return {key: "\n".join(lines) for key, lines in entries.items() if key in _KEPT_KEYS}


def model_card(report: Report, facts: ModelFacts, context: int) -> str:
    """README.md of an export. context: tokens of context to run it with."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    kept = front_matter(_source_readme(facts))
    # A model's own card names what it was made from in turn; what this file was made from is known of a hub id only.
    from_hub = bool(_HUB_ID.fullmatch(facts.requested)) and not Path(facts.requested).exists()
    if from_hub:
        kept["base_model"] = f"base_model: {facts.requested}"
    measured = report.measurement
    return environment.get_template("card.md.j2").render(
        report=report,
        artifact=report.artifact,
        kept=[kept[key] for key in _KEPT_KEYS if key in kept],
        is_quantized_base=from_hub,
        table=markdown_table(report.lines),
        size=format_bytes(report.artifact.total_bytes),
        context=context,
        measured=measured,
        memory=_memory_rows(report),
        drift=report.drift,
        host=measured.host if measured else report.provenance.host,
        is_encoder=is_encoder(report.artifact),
        longest=min(context, report.artifact.context_length or context),
        **_how_to_run(report.artifact, facts),
    )


_RUN_WITH = {"llama.cpp": "gguf", "ONNX Runtime": "onnx", "libtorch": "torchscript", "ExecuTorch": "executorch"}
"""The template of the section for each engine that a contract names."""


def _how_to_run(artifact: Artifact, facts: ModelFacts) -> dict[str, Any]:
    """What the sections of the formats fill in. clients: the directory is laid out for other programs too."""
    from runtime.sessions.llamacpp import KV_TYPE_IDS

    kv_type = str(artifact.contract.get("kv_type", ""))
    task, file = task_of(artifact), PurePosixPath(artifact.entry).name
    pooling = _pooling_of(facts) if task == "feature-extraction" else None
    embedding = "sentence_embedding" if pooling else "last_hidden_state"
    return {
        "how_to_run": _RUN_WITH.get(str(artifact.contract.get("engine")), "gguf"),
        "engine": artifact.contract.get("quantized_engine", ""),
        "lite": artifact.format == "ptl",
        "kinds": "token_type_ids" in artifact.contract.get("inputs", ()),
        "piece": artifact.contract.get("piece", 0),
        "kv_type": kv_type if kv_type in KV_TYPE_IDS else "",
        "kv_type_id": KV_TYPE_IDS.get(kv_type),
        "task": task,
        "output": embedding if task == "feature-extraction" else "logits",
        "pooling": pooling,
        "directory": artifact.root.name,
        "dtype": _JS_DTYPES.get(file, ""),
        "clients": file in _JS_DTYPES,
    }


def _pooling_of(facts: ModelFacts) -> Pooling | None:
    """How the source makes one embedding of a text; of a .gguf to length 1, as llama.cpp's tools do it."""
    if facts.source == "huggingface":
        return read_pooling(facts.path)
    named = {entry.key: entry.value for entry in read_gguf_metadata(facts.path)}
    number = named.get(f"{named.get('general.architecture')}.pooling_type")
    mode = next((name for name, value in POOLINGS.items() if value == number), "none")
    return Pooling(mode, True) if mode not in ("none", "rank") else None


def _memory_rows(report: Report) -> list[tuple[str, str]]:
    """Where the resident bytes lie."""
    if report.measurement is None:
        return []
    split, encoder = report.measurement.memory, report.measurement.of_encoder
    grown = report.measurement.second_turn_growth_bytes
    again = "growth over a second pass of texts" if encoder else "growth over a second turn"
    return [
        *([] if split is None else _split_rows(split, encoder=encoder)),
        *([] if grown is None else [(again, format_bytes(grown))]),
        *_kind_rows(report.measurement.resident, by_tools=report.measurement.load_s is None),
    ]


def _split_rows(split: MemorySplit, *, encoder: bool) -> list[tuple[str, str]]:
    """What the engine says of its memory."""
    return [
        ("weights", format_bytes(split.weights_bytes)),
        *([] if encoder else [("KV cache", format_bytes(split.kv_cache_bytes))]),
        ("compute buffers", format_bytes(split.compute_bytes)),
        ("the rest of the process", format_bytes(split.other_bytes)),
    ]


def _kind_rows(kinds: ResidentKinds | None, *, by_tools: bool) -> list[tuple[str, str]]:
    """What backs the resident bytes at the end of the run; of an engine's tools, at the reading with the most."""
    if kinds is None:
        return []
    when = "at the highest reading" if by_tools else "at the end"
    share, peak = kinds.proportional_bytes, kinds.peak_proportional_bytes
    return [
        (f"{when}: anonymous, which cannot be dropped", format_bytes(kinds.anonymous_bytes)),
        (f"{when}: of mapped files", format_bytes(kinds.file_bytes)),
        *([] if share is None else [(f"{when}: PSS, as Android counts", format_bytes(share))]),
        *([] if peak is None else [("highest PSS seen", format_bytes(peak))]),
    ]


def _source_readme(facts: ModelFacts) -> str:
    """The source's own card, empty where it has none."""
    path = facts.path / "README.md"
    if facts.source != "huggingface" or not path.is_file():
        return ""
    return path.read_text(encoding="utf-8", errors="replace")
