"""What training keeps of an embedding model's ranking in a much smaller file, on the real MiniLM.

    python -m benchmarks.training_encoders [--only NAME …]

A case takes layers out of all-MiniLM-L6-v2, those that are missed least, without and with `distill` behind it, or puts
it on grids of few bits, without and with training on them, by `packlight compress`; both are exported and judged by
`packlight verify` against the whole model, on texts cut from the second half of Python's own help, which was not
learned from: Spearman's correlation between the similarities of all pairs of texts. What is learned from: the first
half, and docstrings of CPython's library and of packages that constraints.txt pins. A run that was stopped goes on
where it was; a finished case is kept in .cache and not run again.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import record
from benchmarks.cases import chosen, finished, with_earlier
from benchmarks.models import minilm
from benchmarks.paths import CACHE
from benchmarks.training_recipes import ran, text_file
from runtime.atomic import write_json

if TYPE_CHECKING:
    from pathlib import Path

KEPT = CACHE / "training-encoders"
DOCSTRINGS, HELPS = 12_000_000, 16
"""Characters of docstrings, about, beside 230,000 of help that stand there so many times: as many texts as the longest
case learns from, a quarter of them like those that are judged."""
CALIBRATION = {"source": "help", "chunks": 64, "tokens": 512}
ROUNDS = "8"
"""Of texts that an artifact is judged on, eight each, from 8 tokens to 512."""


@dataclass(frozen=True)
class Case:
    """What is taken, and the training behind it.

    what: in words; taken: a step; trained: what the distill step behind it, or its own training, says but for its text
    texts: how many, at most, and tokens of the longest; kind: format and quant of the file
    rank: the least rank correlation of the file; share: of the whole model's bytes in float32 that it may take
    """

    what: str
    taken: dict[str, Any]
    trained: dict[str, Any]
    texts: tuple[int, int]
    kind: tuple[str, str] = ("onnx", "dynamic-int8")
    rank: float = 0.97
    share: float = 1.0

    def recipes(self, text: Path) -> list[dict[str, Any]]:
        """What YAML files say: without and with training."""
        chunks, tokens = self.texts
        trained = {**self.trained, "text": {"text": str(text), "chunks": chunks, "tokens": tokens}}
        if self.taken["step"] == "quantize":
            steps, format_name = [[self.taken], [{**self.taken, "training": trained}]], self.kind[0]
        else:
            steps, format_name = [[self.taken], [self.taken, {"step": "distill", **trained}]], None
        return [{"format": format_name, "calibration": CALIBRATION, "steps": one} for one in steps]


_LEARNS = {"batch": 64, "learning_rate": 1e-3, "precision": "bfloat16"}
_FEW_BITS = {
    "step": "quantize", "preset": "q2_0",
    "rules": [
        {"tensors": "token_embd.weight", "type": "q2_0"},
        {"regex": r"attn_(v|output)\.weight", "type": "q4_0"},
        {"tensors": "blk.*.ffn_down.weight", "type": "q3_k"},
    ],
}  # fmt: skip
CASES = {
    "half": Case(
        "3 of 6 layers removed", {"step": "remove", "units": "layers", "count": 3, "scores": "greedy"},
        {"updates": 4300, **_LEARNS}, (64_000, 128),
    ),
    "tenth": Case(
        "two to four bits a weight", _FEW_BITS,
        {**_LEARNS, "updates": 2200, "batch": 32, "learning_rate": 5e-4, "features": {"hidden": 1.0}}, (64_000, 128),
        kind=("gguf", "q2_0"), share=0.1,
    ),
}  # fmt: skip


def run(case: Case, recipes: list[dict[str, Any]], work: Path, provenance: dict[str, Any]) -> dict[str, Any]:
    """Compress, or go on with it, export and verify. work: a directory of the case's own, removed at the end."""
    work.mkdir(exist_ok=True)
    without, trained = [_judged(case, recipe, work / str(number)) for number, recipe in enumerate(recipes)]
    shutil.rmtree(work)
    return {
        **{key: provenance[key] for key in ("commit", "code_sha256", "date")},
        "minutes": trained["step"]["seconds"] / 60,
        "notes": trained["step"]["notes"],
        "before": without,
        "after": trained,
    }


def _judged(case: Case, recipe: dict[str, Any], work: Path) -> dict[str, Any]:
    """The report of the last step, and what `verify` says of the file by the names of its lines."""
    work.mkdir(exist_ok=True)
    file, between, report = work / "recipe.yaml", work / "between", work / "report.json"
    file.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    if not report.is_file():
        write_json(report, ran("compress", minilm(), "--recipe", file, "-o", between, "--threads", "2", "--resume"))
    step = json.loads(report.read_text(encoding="utf-8"))["steps"][-1]
    found = {"step": step, **judged_file(between, case.kind, work / "out")}
    if recipe["format"] is None:  # on the same texts; the step's report is on fewer ones
        found["in floats"] = judged_file(between, ("onnx", "fp32"), work / "out")["rank correlation"]
    return found


def judged_file(source: Path, kind: tuple[str, ...], out: Path) -> dict[str, Any]:
    """Export a directory, into `out`, and judge the file against the whole MiniLM. kind: format, quant, more options"""
    shutil.rmtree(out, ignore_errors=True)
    format_name, quant, *more = kind
    how = ("--format", format_name, "--quant", quant, *more)
    ran("export", source, *how, "--no-verify", "--no-measure", "-o", out)
    # Limits are for files that shall give what their source gives; this one is smaller on purpose.
    free = ("--min-cosine", "-1", "--min-rank-correlation", "-1")
    verified = ran("verify", out, "--against", minilm(), "--chunks", ROUNDS, *free)
    found = {line["name"]: line["value"] for line in verified["lines"]}
    return {
        "n_bytes": sum(path.stat().st_size for path in (*out.glob("onnx/*"), *out.glob("*.gguf"))),
        "n_texts": verified["drift"]["n_texts"],
        **{key: found[key] for key in ("cosine", "rank correlation")},
    }


def holds(name: str, found: dict[str, Any], source_bytes: int) -> bool:
    """Whether the file ranks as it has to, and is as small. source_bytes: of the whole model in float32"""
    case, after = CASES[name], found["after"]
    return bool(after["rank correlation"] >= case.rank and after["n_bytes"] <= case.share * source_bytes)


def table(content: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| recipe | file, MB | of the whole model in float32 | minutes of training | cosine without | with "
        "| rank correlation without | with (limit) | with, in float32 | commit |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, found in content["cases"].items():
        before, after, case = found["before"], found["after"], CASES[name]
        judged = record.judged(
            f"{after['rank correlation']:.3f} (≥ {case.rank})", holds(name, found, content["source_bytes"])
        )
        in_floats = f"{after['in floats']:.3f}" if "in floats" in after else ""
        lines.append(
            f"| {case.what} | {after['n_bytes'] / 1e6:.1f} | 1/{content['source_bytes'] / after['n_bytes']:.1f} "
            f"| {found['minutes']:.0f} | {before['cosine']:.3f} | {after['cosine']:.3f} "
            f"| {before['rank correlation']:.3f} | {judged} | {in_floats} "
            f"| `{found['commit'][:12]}` |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is not there yet, print the table, write the result; exit status 1 where a limit does not hold."""
    names = chosen("training_encoders", __doc__.splitlines()[0], CASES)
    content: dict[str, Any] = record.provenance()
    content["source_bytes"] = (minilm() / "model.safetensors").stat().st_size
    KEPT.mkdir(parents=True, exist_ok=True)
    text = text_file(KEPT, DOCSTRINGS, HELPS)
    recipes = {name: CASES[name].recipes(text) for name in names}
    found = finished(
        KEPT, content["code_sha256"], recipes, lambda name, work: run(CASES[name], recipes[name], work, content)
    )
    content["cases"] = with_earlier("training_encoders", CASES, found)
    record.save("training_encoders", content)
    print(table(content))
    sys.exit(not all(holds(name, one, content["source_bytes"]) for name, one in found.items()))


if __name__ == "__main__":
    main()
