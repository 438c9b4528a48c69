"""How far honest files stay from the default limits of drift, and how far broken ones go beyond.

    python -m benchmarks.thresholds [--chunks 4] [--quants q4_k_m q4_0]

On the off-grid copy of SmolLM2. Every preset is exported and compared with the source as `packlight verify` does it.
Then faults are planted: q and k rows not permuted, into the worst honest file under each row of limits; one
attention matrix zeroed, into Q4_K_M. Exit status 1 where an honest file has less than ROOM times the room on mean KL
or fails a limit, or where a file with unpermuted rows passes the loosest limits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import record
from benchmarks.kl_parity import CONTEXT, PATTERNS, export
from benchmarks.models import offgrid
from benchmarks.paths import CACHE, ROOT
from benchmarks.smollm2 import smollm2
from runtime.openmp import wait_briefly
from targets.drift import THRESHOLDS, judge, thresholds_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from exporter.verify.reference import Reference
    from targets.drift import Drift, Thresholds
    from targets.facts import ModelFacts
    from targets.text import EvalText

ROOM = 1.5
"""Smallest allowed quotient of the limit of mean KL and an honest file's."""
FIGURES = tuple(PATTERNS)
MEASURES = ("mean_kl", "p99_kl", "perplexity_ratio", "same_top1")
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output")
"""Zero q or zero k, every score is zero; zero v or zero output, nothing is added: pairs have to come out equal."""
LAYERS = (6, 12, 18, 24)
"""Whose matrices are zeroed, one at a time; of 30."""
ZEROED_IN = "q4_k_m"
N_LAYERS, N_HEADS, N_KV_HEADS = 30, 9, 3


class Kept:
    """A Reference that computes the logits of a chunk once and keeps them: 50 MB for the half of 512 tokens."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._logits: dict[tuple[tuple[int, ...], int], npt.NDArray[np.float32]] = {}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the reference has
        return getattr(self._reference, name)

    def logits(self, ids: Sequence[int], first: int = 0) -> npt.NDArray[np.float32]:
        """See `exporter.verify.reference.Reference`."""
        key = (tuple(ids), first)
        if key not in self._logits:
            self._logits[key] = self._reference.logits(ids, first)
        return self._logits[key]


@dataclass(frozen=True)
class Source:
    """The source, open, and what it is compared on."""

    facts: ModelFacts
    reference: Reference
    text: EvalText
    chunks: int

    def drift(self, path: Path) -> Drift:
        """What `exporter.verify.verify` says of the .gguf file at `path`, without loading the source again."""
        import dataclasses

        from exporter.verify.run import compare
        from exporter.verify.tensors import dead_tensors
        from runtime.artifact import open_artifact
        from runtime.measurement import RunOptions
        from runtime.sessions import open_session

        artifact = open_artifact(path)
        session = open_session(artifact, RunOptions(threads=2, context=CONTEXT, batch=CONTEXT))
        try:
            drift = compare(session, self.reference, self.text, (self.chunks, CONTEXT), lambda *_: None)
        finally:
            session.close()
        return dataclasses.replace(drift, dead_tensors=dead_tensors(artifact, self.facts))


def figure(entry: dict[str, Any], measure: str) -> float:
    """A measure of a row of the result, which holds the two perplexities and not their ratio."""
    if measure == "perplexity_ratio":
        return float(entry["perplexity"] / entry["source_perplexity"])
    return float(entry[measure])


def loss(measure: str, value: float) -> float:
    """How far a figure is from that of an equal model: 0 for KL, 1 for the ratio and the share."""
    return {"perplexity_ratio": value - 1, "same_top1": 1 - value}.get(measure, value)


def limit_of(measure: str, limits: Thresholds) -> float:
    """The limit of a measure; the default limits have one for each."""
    value = getattr(limits, f"{'min' if measure == 'same_top1' else 'max'}_{measure}")
    if value is None:
        raise ValueError(f"the default limits have none for {measure}")
    return float(value)


def headroom(measure: str, value: float, limits: Thresholds) -> float | None:
    """The allowed loss over the measured one: 2 is half way to the limit, below 1 fails. None without a loss."""
    lost = loss(measure, value)
    return loss(measure, limit_of(measure, limits)) / lost if lost > 0 else None


def row(quant: str, bits: float, drift: Drift) -> dict[str, Any]:
    """A file's figures, the limits that apply to so many bits per weight, the room to them and what fails."""
    limits = thresholds_for(bits)
    return {
        "quant": quant,
        "bits_per_weight": bits,
        **{name: getattr(drift, name) for name in FIGURES},
        "limits": asdict(limits),
        "headroom": {name: headroom(name, getattr(drift, name), limits) for name in MEASURES},
        "fails": [line.name for line in judge(drift, limits) if line.ok is False],
    }


def honest(source: Source, model: Path, quants: list[str], work: Path) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    """One row a preset, the files with the most bits first, and where each file is."""
    from runtime.artifact import open_artifact

    rows, paths = [], {}
    for quant in quants:
        paths[quant] = export(model, quant, work / quant)
        rows.append(row(quant, open_artifact(paths[quant]).bits_per_weight, source.drift(paths[quant])))
        print(f"{quant}: {rows[-1]}", file=sys.stderr, flush=True)
    return sorted(rows, key=lambda entry: -entry["bits_per_weight"]), paths


def worst_of_each_limit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the files that share limits, the one with the highest mean KL."""
    found: dict[Thresholds, dict[str, Any]] = {}
    for entry in rows:
        limits = thresholds_for(entry["bits_per_weight"])
        if limits not in found or found[limits]["mean_kl"] < entry["mean_kl"]:
            found[limits] = entry
    return list(found.values())


def planted(source: Source, rows: list[dict[str, Any]], paths: dict[str, Path], out: Path) -> list[dict[str, Any]]:
    """One row a fault, with what the honest file had and what fails even under the loosest limits."""
    sys.path.insert(0, str(ROOT / "tests"))  # the edits are the tests' own
    from support.gguf_edit import Edits, edit_gguf, unpermuted, zeroed

    rotary = {
        f"blk.{layer}.attn_{which}.weight": unpermuted(heads)
        for layer in range(N_LAYERS)
        for which, heads in (("q", N_HEADS), ("k", N_KV_HEADS))
    }
    faults = [("q and k rows not permuted", entry, rotary) for entry in worst_of_each_limit(rows)]
    faults += [
        (f"{matrix} of layer {layer} zeroed", entry, {f"blk.{layer}.{matrix}.weight": zeroed})
        for entry in rows
        if entry["quant"] == ZEROED_IN
        for matrix in MATRICES
        for layer in LAYERS
    ]
    found = []
    for fault, entry, tensors in faults:
        drift = source.drift(edit_gguf(paths[entry["quant"]], out, Edits(tensors=tensors)))
        loosest = [line.name for line in judge(drift, THRESHOLDS[-1][1]) if line.ok is False]
        broken = row(entry["quant"], entry["bits_per_weight"], drift)
        found.append({"fault": fault, "honest_mean_kl": entry["mean_kl"], **broken, "fails_loosest": loosest})
        print(f"{fault}: {found[-1]}", file=sys.stderr, flush=True)
    return found


def table(content: dict[str, Any]) -> str:
    """The result as Markdown. Limits and room are computed anew: the code may have other limits since the run."""
    names = ("mean KL", "99 % KL", "perplexity ratio", "same top-1")
    lines = [
        f"| preset | bits per weight | {' | '.join(f'{name} (limit, room)' for name in names)} |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in content["rows"]:
        limits = thresholds_for(entry["bits_per_weight"])
        cells = [_cell(name, figure(entry, name), limits) for name in MEASURES]
        lines.append(f"| {entry['quant'].upper()} | {entry['bits_per_weight']:.2f} | {' | '.join(cells)} |")
    lines += [
        "",
        "| fault | in | mean KL (of the honest file) | 99 % KL | perplexity ratio | same top-1 | fails |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {entry['fault']} | {entry['quant'].upper()} | {entry['mean_kl']:.4f} ({entry['honest_mean_kl']:.4f}) "
        f"| {entry['p99_kl']:.3f} | {figure(entry, 'perplexity_ratio'):.3f} | {entry['same_top1']:.3f} "
        f"| {'; '.join(entry['fails'])} |"
        for entry in content["faults"]
    ]
    return "\n".join(lines)


def _cell(measure: str, value: float, limits: Thresholds) -> str:
    room = headroom(measure, value, limits)
    digits = 4 if measure == "mean_kl" else 3
    return f"{value:.{digits}f} ({limit_of(measure, limits)}, {'no loss' if room is None else f'{room:.1f}x'})"


def complaints(content: dict[str, Any]) -> list[str]:
    """What is wrong with the limits, one line each; see the top of this file."""
    found = []
    for entry in content["rows"]:
        room = entry["headroom"]["mean_kl"]
        if entry["fails"]:
            found.append(f"{entry['quant']}: honest, but fails {', '.join(entry['fails'])}")
        elif room is not None and room < ROOM:
            found.append(f"{entry['quant']}: honest, but only {room:.2f} times the room on mean KL")
    for entry in content["faults"]:
        if not entry["fails_loosest"]:
            found.append(f"{entry['quant']}: {entry['fault']}, and passes the loosest limits")
    return found


def main() -> None:
    """Run, print the table, write the result; exit status 1 where there are complaints about the limits."""
    from targets.gguf.presets import PRESETS

    parser = argparse.ArgumentParser(prog="python -m benchmarks.thresholds", description=__doc__.splitlines()[0])
    # Not those that need an importance matrix, and not those of models that were trained to them.
    special = {"f32", "tq1_0", "tq2_0", "q1_0", "q2_0", "mxfp4_moe"}
    usual = [name for name, preset in PRESETS.items() if name not in special and not preset.weighted]
    parser.add_argument("--quants", nargs="+", default=usual)
    parser.add_argument("--chunks", type=int, default=4)
    args = parser.parse_args()
    # Before torch loads OpenMP: its threads and llama.cpp's take turns here and must not spin while they wait.
    wait_briefly()
    from exporter.checkpoint import resolve
    from exporter.verify.reference import TransformersReference
    from targets.text import default_text

    start, model, text = time.monotonic(), offgrid(smollm2()), default_text("evaluation")
    content: dict[str, Any] = {**record.provenance(), "chunks": args.chunks, "context": CONTEXT}
    content["text"] = {"name": text.name, "sha256": text.sha256}
    reference = Kept(TransformersReference(model, threads=2))
    source = Source(resolve(str(model)), reference, text, args.chunks)
    content["reference"] = reference.description
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        work = Path(directory)
        content["rows"], paths = honest(source, model, args.quants, work)
        content["faults"] = planted(source, content["rows"], paths, work / "broken.gguf")
    content["complaints"] = complaints(content)
    content["wall_s"] = round(time.monotonic() - start, 1)
    record.save("thresholds", content)
    print(table(content))
    sys.exit("\n".join(content["complaints"]) or 0)


if __name__ == "__main__":
    main()
