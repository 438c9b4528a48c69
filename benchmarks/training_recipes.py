"""What training gives back of what a removal or a grid took, on the real model, within a stated number of updates.

    python -m benchmarks.training_recipes [--only NAME …]

Every case is a recipe for SmolLM2, run by `packlight compress`: a step that takes something out, one that trains, and
one that quantizes what is left, with and without the second; or a step that quantizes, without and with training. What
is learned from: the first half of Python's own help, and docstrings of CPython's library and of packages that
constraints.txt pins. Judged, as the report of each step has it, on the help's second half. A run that was stopped goes
on where it was; a finished case is kept in .cache and not run again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import record
from benchmarks.cases import chosen, finished, with_earlier
from benchmarks.compression_methods import ENVIRONMENT, PACKLIGHT
from benchmarks.models import offgrid
from benchmarks.paths import CACHE
from benchmarks.smollm2 import smollm2
from benchmarks.trained import documents
from exporter.checkpoint import resolve
from runtime.atomic import write_json
from targets.text import default_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEPT = CACHE / "training-recipes"
CALIBRATION = {"source": "help", "chunks": 16, "tokens": 512}
TOKENS = 256
"""Of a piece that is learned from."""
DOCSTRINGS, HELPS = 2_000_000, 4
"""Characters of docstrings, about, beside 230,000 of help that stand there so many times: as much as the longest case
learns from, and enough help to speak like it."""


@dataclass(frozen=True)
class Case:
    """Something that takes, and a training that gives back.

    what: in words; taken: a step; trained: what a distill step behind it, or the training of a quantize step, says but
    for its text
    recovered: the least share of the lost KL divergence that has to come back
    then: the quantize step of a recipe of three; in_file: the least share that has to come back behind it
    share: of the whole model's bytes in float32 that the file may take
    """

    what: str
    taken: dict[str, Any]
    trained: dict[str, Any]
    recovered: float
    then: dict[str, Any] | None = None
    in_file: float = 0.0
    share: float = 1.0

    def recipes(self, text: Path) -> list[dict[str, Any]]:
        """What YAML files say: without and with training."""
        pieces = self.trained["updates"] * self.trained["batch"]
        lessons = {"text": str(text), "chunks": pieces + pieces // 15 + 1, "tokens": TOKENS}
        trained = {**self.trained, "text": lessons}
        if self.then is None:
            steps = [[self.taken], [{**self.taken, "training": trained}]]
        else:
            steps = [[self.taken, self.then], [self.taken, {"step": "distill", **trained}, self.then]]
        return [{"format": "gguf", "calibration": CALIBRATION, "steps": one} for one in steps]


_LAYERS = {"step": "remove", "units": "layers", "count": 6}
_Q4_0 = {"step": "quantize", "preset": "q4_0", "method": "gptq"}
_FEW_BITS = {
    "step": "quantize", "preset": "q2_0", "method": "gptq",
    "rules": [
        {"tensors": "token_embd.weight", "type": "q4_0"},
        {"tensors": "blk.*.attn_v.weight", "type": "q4_0"},
        {"tensors": "blk.*.ffn_down.weight", "type": "q3_k"},
    ],
}  # fmt: skip
CASES = {
    "layers": Case(
        "30 to 24 layers, all weights", _LAYERS,
        {"updates": 600, "batch": 4, "learning_rate": 2e-4, "precision": "bfloat16"}, recovered=0.6,
        then=_Q4_0, in_file=0.4,
    ),
    "q4_0": Case(
        "GPTQ at Q4_0, codes and scales", _Q4_0,
        {"updates": 100, "batch": 4, "learning_rate": 5e-5, "precision": "bfloat16"}, recovered=0.01,
    ),
    "q4_0-scales": Case(
        "GPTQ at Q4_0, scales and norms alone", _Q4_0,
        {"updates": 60, "batch": 4, "learning_rate": 1e-4, "train": "scales"}, recovered=0.01,
    ),
    "tenth": Case(
        "two to four bits a weight, codes and scales", _FEW_BITS,
        {"updates": 500, "batch": 4, "learning_rate": 2e-4, "precision": "bfloat16"}, recovered=0.5, share=0.1,
    ),
}  # fmt: skip


def text_file(kept: Path, docstrings: int, helps: int = 1) -> Path:
    """What is learned from, in a file of the directory `kept` that carries its hash.

    docstrings: characters, about; helps: how many times the help stands there
    """
    found = documents()
    chosen = found[:: max(1, sum(map(len, found)) // docstrings)]
    text = "\n\n".join([*[default_text("calibration").text] * helps, *chosen])
    path = kept / f"text-{hashlib.sha256(text.encode()).hexdigest()[:16]}.txt"
    if not path.is_file():
        path.write_text(text, encoding="utf-8")
    return path


def run(
    case: Case, recipes: list[dict[str, Any]], model: Path, work: Path, provenance: dict[str, Any]
) -> dict[str, Any]:
    """Compress, or go on with it. work: a directory of the case's own, which is removed at the end."""
    work.mkdir(exist_ok=True)
    without, trained = [_compressed(recipe, model, work / str(number)) for number, recipe in enumerate(recipes)]
    shutil.rmtree(work)
    found = {
        **{key: provenance[key] for key in ("commit", "code_sha256", "date")},
        **_gained(*(trained[:2] if case.then is not None else (without[-1], trained[-1]))),
        "tokens": case.trained["updates"] * case.trained["batch"] * TOKENS,
    }
    if case.then is not None:
        found["file"] = _gained(without[-1], trained[-1])
    return found


def _gained(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What the report of a step says beside that of another."""
    keys = ("mean_kl", "perplexity_ratio", "same_top1", "n_bytes")
    return {
        "n_params": after["n_params"], "minutes": after["seconds"] / 60, "notes": after["notes"],
        "before": {key: before[key] for key in keys}, "after": {key: after[key] for key in keys},
        "recovered": 1 - after["mean_kl"] / before["mean_kl"],
    }  # fmt: skip


def _compressed(recipe: dict[str, Any], model: Path, work: Path) -> list[dict[str, Any]]:
    """The reports of a recipe's steps."""
    work.mkdir(exist_ok=True)
    file, out, report = work / "recipe.yaml", work / "out", work / "report.json"
    if not report.is_file():
        file.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
        write_json(report, ran("compress", model, "--recipe", file, "-o", out, "--threads", "2", "--resume"))
        shutil.rmtree(out)
    steps: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["steps"]
    return steps


def ran(verb: str, *arguments: str | Path) -> dict[str, Any]:
    """What packlight prints for machines; what it says to people goes on to the terminal."""
    command = [PACKLIGHT, verb, *map(str, arguments), "--json"]
    done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def holds(name: str, found: dict[str, Any], source_bytes: int) -> bool:
    """Whether as much came back as has to, in no more bytes. source_bytes: of the whole model in float32"""
    return all(ok for *_, ok in _rows(name, found, source_bytes))


def _rows(name: str, found: dict[str, Any], source_bytes: int) -> Iterator[tuple[str, dict[str, Any], float, bool]]:
    """A case's rows: what, the gain, the least share that has to come back, and whether it did in no more bytes."""
    case = CASES[name]
    parts = [(case.what, found, case.recovered)]
    if "file" in found and case.then is not None:
        parts.append((f"the same, then {case.then['preset'].upper()} by GPTQ", found["file"], case.in_file))
    for what, one, limit in parts:
        most = min(one["before"]["n_bytes"], case.share * source_bytes)
        yield what, one, limit, one["recovered"] >= limit and one["after"]["n_bytes"] <= most


def table(content: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| recipe | MB | of the whole model in float32 | tokens learned from, thousands | minutes "
        "| mean KL without | with | came back (limit) | same top-1 without | with | commit |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, found in content["cases"].items():
        for what, one, limit, ok in _rows(name, found, content["source_bytes"]):
            share = f"{one['recovered']:.0%} (≥ {limit:.0%})"
            before, after = one["before"], one["after"]
            minutes = f"{one['minutes']:.0f}" if one is found else ""  # of the training
            lines.append(
                f"| {what} | {after['n_bytes'] / 1e6:.1f} | 1/{content['source_bytes'] / after['n_bytes']:.1f} "
                f"| {found['tokens'] / 1e3:.0f} | {minutes} "
                f"| {before['mean_kl']:.4f} | {after['mean_kl']:.4f} | {record.judged(share, ok)} "
                f"| {before['same_top1']:.1%} | {after['same_top1']:.1%} | `{found['commit'][:12]}` |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run what is not there yet, print the table, write the result; exit status 1 where a limit does not hold.

    Each case carries its own commit: one that this run was not asked for stays as an earlier run has left it.
    """
    names = chosen("training_recipes", __doc__.splitlines()[0], CASES)
    model = offgrid(smollm2())
    content: dict[str, Any] = record.provenance()
    content["source_bytes"] = 4 * resolve(str(model)).n_stored_params
    KEPT.mkdir(parents=True, exist_ok=True)
    text = text_file(KEPT, DOCSTRINGS, HELPS)
    recipes = {name: CASES[name].recipes(text) for name in names}
    found = finished(
        KEPT, content["code_sha256"], recipes, lambda name, work: run(CASES[name], recipes[name], model, work, content)
    )
    content["cases"] = with_earlier("training_recipes", CASES, found)
    record.save("training_recipes", content)
    print(table(content))
    sys.exit(not all(holds(name, one, content["source_bytes"]) for name, one in found.items()))


if __name__ == "__main__":
    main()
