"""How near `packlight plan` comes to what `packlight measure` finds: bytes, peak memory, decoding speed.

    python -m benchmarks.estimate_accuracy [--models deep wide] [--formats gguf onnx] [--no-speed]
    python -m benchmarks.estimate_accuracy --reforecast    hold what the code says now against the peaks of the last run

Real SmolLM2 and four random models of other shapes: wide, with a large vocabulary, with sliding layers, with many
narrow layers and a head of its own; real MiniLM and four random encoders. Every cell is one artifact measured by the
harness with one context, batch and type of cache; the speed comes from `packlight calibrate-host`, run here first.
Beside it what llama.cpp's own llama-fit-params says of the same file: the model, the cache and the compute buffers that
it would reserve. Cells of models and formats that a run is not asked for stay as an earlier one has left them: each
carries the commit that measured it, and the one that said what it would be.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import record
from benchmarks.models import minilm, offgrid
from benchmarks.paths import MODELS, new_directory
from benchmarks.smollm2 import smollm2
from benchmarks.tools import tool
from exporter.calibrate_host import calibrate
from exporter.checkpoint import resolve
from exporter.progress import LineReporter
from runtime.host import default_threads
from runtime.measure import measure
from runtime.measurement import KV_TYPE, RunOptions, Trials
from targets import get_target
from targets.base import EmitOptions
from targets.processor import Processor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.measurement import Measurement
    from targets.facts import ModelFacts
    from targets.outline import Outline
    from targets.speed import HostSpeed

NAME = "estimate-accuracy"
NEAR, SPEED_NEAR = 0.05, 0.20
PROMPT, DECODED = 512, 32
"""Tokens; the prompt is shorter where the context is, so that a whole batch is evaluated at once where one can be."""
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "wide": ("LlamaConfig", {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16,
                             "num_key_value_heads": 4, "num_hidden_layers": 12, "vocab_size": 49152}),
    "vocabulary": ("Qwen3Config", {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
                                   "num_key_value_heads": 12, "head_dim": 64, "num_hidden_layers": 8,
                                   "vocab_size": 151936}),
    "sliding": ("Gemma3TextConfig", {"hidden_size": 640, "intermediate_size": 2048, "num_attention_heads": 4,
                                     "num_key_value_heads": 1, "head_dim": 256, "num_hidden_layers": 18,
                                     "vocab_size": 49152, "sliding_window": 512}),
    "deep": ("LlamaConfig", {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8,
                             "num_key_value_heads": 2, "num_hidden_layers": 24, "vocab_size": 49152,
                             "tie_word_embeddings": False}),
}  # fmt: skip
"""Random models: the configuration's class, and what it is given."""
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
                            "num_hidden_layers": 4, "vocab_size": 30522}),
    "roberta": ("RobertaConfig", {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
                                  "num_hidden_layers": 8, "vocab_size": 50265, "max_position_embeddings": 514,
                                  "type_vocab_size": 1, "pad_token_id": 1}),
    "modernbert": ("ModernBertConfig", {"hidden_size": 512, "intermediate_size": 768, "num_attention_heads": 8,
                                        "num_hidden_layers": 6, "vocab_size": 50368, "pad_token_id": 0,
                                        "max_position_embeddings": 2048}),
    "nomic": ("NomicBertConfig", {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
                                  "num_hidden_layers": 4, "vocab_size": 30528}),
}  # fmt: skip
"""Random encoders, likewise."""
GGUF_ONLY = ("modernbert", "nomic")
"""Of those, what is not written as ONNX."""
REAL = ("smollm2", "minilm")
NAMES = (*REAL, *SHAPES, *ENCODERS)
QUANTS = {"gguf": ("q4_k_m", "q4_0", "q8_0", "q5_k_m"), "onnx": ("int4", "int8", "dynamic-int8")}
ENCODER_QUANTS = {
    "gguf": ("f32", "f16", "q8_0", "q4_0", "q4_k_m"),
    "onnx": ("fp32", "fp16", "int8", "dynamic-int8"),
}
SETTINGS = {
    "gguf": (RunOptions(context=512), RunOptions(context=1024, kv_type="q8_0"), RunOptions(context=1024, batch=128),
             RunOptions(context=512, kv_type="f32")),
    "onnx": (RunOptions(context=256), RunOptions(context=512), RunOptions(context=1024)),
}  # fmt: skip
ENCODER_SETTINGS = (RunOptions(context=128), RunOptions(context=512))


@dataclass(frozen=True)
class Cell:
    """One artifact, run in one way: what was said, and what was found."""

    model: str
    format: str
    quant: str
    options: RunOptions
    predicted: int
    peak: int
    bytes_equal: bool
    predicted_decode: float | None
    decode: float
    fit_params: int | None
    """Bytes by llama-fit-params, which whole MiB it says; None where it cannot be asked."""

    @property
    def error(self) -> float:
        """Of the peak, relative to what was measured; negative where too little was said."""
        return self.predicted / self.peak - 1

    @property
    def speed_error(self) -> float | None:
        """Of the decoding speed."""
        return None if self.predicted_decode is None else self.predicted_decode / self.decode - 1

    def row(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "model": self.model, "format": self.format, "quant": self.quant, "context": self.options.context,
            "batch": self.options.batch, "kv_type": self.options.kv_type or "f16", "predicted_peak": self.predicted,
            "peak": self.peak, "bytes_equal": self.bytes_equal, "predicted_decode": self.predicted_decode,
            "decode": self.decode, "fit_params": self.fit_params,
        }  # fmt: skip


def model(name: str) -> Path:
    """The directory of one of the models, made once."""
    if name in REAL:
        return offgrid() if name == "smollm2" else minilm()
    out = MODELS / f"estimate-{name}"
    if (out / "config.json").is_file():
        return out
    import torch
    import transformers

    if name in ENCODERS:
        kind, fields = ENCODERS[name]
        usual, source, head, dtype = {}, minilm(), transformers.AutoModel, torch.float32
    else:
        kind, fields = SHAPES[name]
        usual = {"max_position_embeddings": 8192, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
                 "tie_word_embeddings": True}  # fmt: skip
        source, head, dtype = smollm2(), transformers.AutoModelForCausalLM, torch.bfloat16
    config = getattr(transformers, kind)(**{**usual, **fields})
    torch.manual_seed(0)
    with torch.device("meta"):
        made = head.from_config(config, dtype=dtype)
    made = made.to_empty(device="cpu")
    for parameter in made.parameters():
        if parameter.dim() == 1:
            parameter.data.fill_(1)
        else:
            parameter.data.normal_(0, 0.02)
    for _, buffer in made.named_buffers():
        buffer.data.fill_(0)  # what an encoder keeps of positions is not stored
    made.tie_weights()
    with new_directory(out) as partial:
        for path in source.iterdir():
            if path.name.startswith(("tokenizer", "special", "vocab", "merges")):
                shutil.copyfile(path, partial / path.name)
        made.save_pretrained(partial)
    return out


def cells(names: Sequence[str], formats: Sequence[str], speed: HostSpeed | None) -> Iterator[Cell]:
    """Every cell in turn."""
    for name in names:
        facts = resolve(str(model(name)))
        encoder = name in ENCODERS or name == "minilm"
        for format_name in formats:
            if name in GGUF_ONLY and format_name != "gguf":
                continue
            outlines = importlib.import_module(f"targets.{format_name}.outline").outlines
            for outline in outlines(facts, (ENCODER_QUANTS if encoder else QUANTS)[format_name]).outlines:
                yield from _of_one(name, facts, outline, speed)


def _of_one(name: str, facts: ModelFacts, outline: Outline, speed: HostSpeed | None) -> Iterator[Cell]:
    with tempfile.TemporaryDirectory(dir=MODELS.parent) as directory:
        out = Path(directory)
        target = get_target(outline.format)
        artifact = target.emit(facts, EmitOptions(outline.quant), out, lambda _what, _done, _total: None)
        for options in ENCODER_SETTINGS if outline.encoder else SETTINGS[outline.format]:
            footprint = outline.footprint(options, Processor.here())
            if footprint is None:
                continue
            prompt = None if outline.encoder else min(PROMPT, options.context - DECODED)
            found: Measurement = measure(artifact, options, Trials(prompt, DECODED, 3 if speed else 1))
            decode = found.decode_tokens_per_s
            cell = Cell(
                name, outline.format, outline.quant, options, footprint.peak_bytes, found.peak_rss_bytes,
                outline.file_bytes == artifact.total_bytes,
                _foreseen(speed, outline, prompt, options),
                decode.median if decode else 0.0,
                fit_params(artifact.entry_path, options) if outline.format == "gguf" else None,
            )  # fmt: skip
            said = f"{cell.speed_error:+.0%}" if cell.speed_error is not None else "-"
            how = f"{options.context} {options.batch} {options.kv_type or 'f16'}"
            memory = f"{cell.peak / 1e6:.1f} MB, {cell.error:+.1%}"
            print(f"{name} {cell.format} {cell.quant} {how}: {memory}; {cell.decode:.1f}/s, {said}", flush=True)
            yield cell


def _foreseen(speed: HostSpeed | None, outline: Outline, prompt: int | None, options: RunOptions) -> float | None:
    """Tokens a second, decoded."""
    if speed is None or prompt is None:
        return None
    possible = outline.kv_types()
    kv_type = possible[0] if len(possible) == 1 else options.kv_type or KV_TYPE
    return speed.decode(outline, prompt + DECODED / 2, kv_type)


def fit_params(path: Path, options: RunOptions) -> int | None:
    """Bytes that llama-fit-params expects of a run on the CPU; None where it refuses."""
    kind = options.kv_type or "f16"
    command = [str(tool("llama-fit-params")), "--model", str(path), "--fit-print", "on", "--ctx-size",
               str(options.context), "--batch-size", str(options.batch), "--ubatch-size", str(options.batch),
               "--cache-type-k", kind, "--cache-type-v", kind]  # fmt: skip
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [line.split() for line in said.stdout.splitlines() if line.startswith("Host ")]
    return sum(map(int, rows[-1][1:4])) << 20 if said.returncode == 0 and rows else None


def run(names: Sequence[str], formats: Sequence[str], with_speed: bool) -> dict[str, Any]:
    """The result's content."""
    content = record.provenance()
    start = time.perf_counter()
    speed = calibrate(None, formats, LineReporter(sys.stdout)) if with_speed else None
    content |= {"threads": default_threads(), "calibration": speed.to_json() if speed else None}
    content["cells"] = _others(names, formats)
    for name in names:  # saved as it goes: a run that is broken off has whole models
        said = {"commit": content["commit"], "said": content["commit"]}
        content["cells"] += [cell.row() | said for cell in cells([name], formats, speed)]
        content["seconds"] = time.perf_counter() - start
        record.save(NAME, content)
    return content


def _others(names: Sequence[str], formats: Sequence[str]) -> list[dict[str, Any]]:
    """The cells of the last result that are of other models, or of other formats."""
    earlier = record.load(NAME)
    if earlier is None:
        return []
    forecast = earlier.get("forecast", earlier)  # of results that did not say it cell by cell
    whose = {"commit": earlier["commit"], "said": forecast["commit"]}
    return [whose | row for row in earlier["cells"] if row["model"] not in names or row["format"] not in formats]


def reforecast(content: dict[str, Any]) -> dict[str, Any]:
    """The result with the peaks that the code says now: what was measured stays, and whose it was."""
    now = record.commit()
    outlines: dict[tuple[str, str, str], Outline] = {}
    for row in content["cells"]:
        key = (row["model"], row["format"], row["quant"])
        if key not in outlines:
            module = importlib.import_module(f"targets.{row['format']}.outline")
            (outlines[key],) = module.outlines(resolve(str(model(row["model"]))), [row["quant"]]).outlines
        options = RunOptions(context=row["context"], batch=row["batch"], kv_type=row["kv_type"])
        footprint = outlines[key].footprint(options, Processor.here())
        if footprint is None:
            raise ValueError(f"nothing is said of {key}")
        row |= {"predicted_peak": footprint.peak_bytes, "said": now}
    return content


def table(content: dict[str, Any]) -> str:
    """For the documentation: one row a model and format."""
    lines = ["| model | format | cells | bytes exact | peak memory: error | within 5 % | llama-fit-params: error "
             "| decode: error | within 20 % | measured by | said by |",
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in content["cells"]:
        groups.setdefault((row["model"], row["format"]), []).append(row)
        groups.setdefault(("all", row["format"]), []).append(row)
    for (name, format_name), rows in sorted(groups.items(), key=lambda one: (one[0][0] == "all", one[0])):
        errors = [row["predicted_peak"] / row["peak"] - 1 for row in rows]
        near = sum(abs(error) <= NEAR for error in errors)
        exact = sum(row["bytes_equal"] for row in rows)
        fit = [row["fit_params"] / row["peak"] - 1 for row in rows if row.get("fit_params")]
        timed = [row["predicted_decode"] / row["decode"] - 1 for row in rows if row["predicted_decode"]]
        fast = f"{sum(abs(error) <= SPEED_NEAR for error in timed)} of {len(timed)}" if timed else ""
        whose = [", ".join(sorted({f"`{row[key][:12]}`" for row in rows})) for key in ("commit", "said")]
        whose = whose if name != "all" else ["", ""]
        lines.append(f"| {name} | {format_name} | {len(rows)} | {exact} | {_span(errors)} | {near} | {_span(fit)} "
                     f"| {_span(timed)} | {fast} | {whose[0]} | {whose[1]} |")  # fmt: skip
    return "\n".join(lines)


def _span(errors: Sequence[float]) -> str:
    """From the least to the most."""
    return f"{min(errors):+.1%} to {max(errors):+.1%}" if errors else ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimate_accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--formats", nargs="+", default=list(QUANTS), choices=list(QUANTS))
    parser.add_argument("--no-speed", action="store_true", help="memory and bytes only")
    parser.add_argument("--reforecast", action="store_true", help="of the last run's cells, measure nothing")
    args = parser.parse_args()
    if args.reforecast:
        content = record.load(NAME)
        if content is None:
            parser.error("there is no result yet")
        content = reforecast(content)
        print(table(content))
        print(record.save(NAME, content))
        return
    content = run(args.models, args.formats, not args.no_speed)
    print(table(content))
    print(record.save(NAME, content))


if __name__ == "__main__":
    main()
