"""What training gives back of what a removal took, on the real model, within a stated number of updates.

    python -m benchmarks.training_recipes [--only NAME …]

Every case is a recipe for SmolLM2, run by `packlight compress`, with one step that takes something out and one that
trains. What is learned from: docstrings of CPython's library and of packages that constraints.txt pins. Judged, as the
report of each step has it, on the second half of Python's own help, which is none of these. A run that was stopped goes
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
from benchmarks.cases import chosen, finished
from benchmarks.compression_methods import ENVIRONMENT, PACKLIGHT
from benchmarks.models import offgrid
from benchmarks.paths import CACHE
from benchmarks.smollm2 import smollm2
from benchmarks.trained import documents

if TYPE_CHECKING:
    from pathlib import Path

KEPT = CACHE / "training-recipes"
CALIBRATION = {"source": "help", "chunks": 16, "tokens": 512}
TOKENS = 256
"""Of a piece that is learned from."""


@dataclass(frozen=True)
class Case:
    """A recipe of two steps. what: in words; taken: the first; trained: the second but for its text

    recovered: the least share of the lost KL divergence that has to come back; None where none is asked
    """

    what: str
    taken: dict[str, Any]
    trained: dict[str, Any]
    recovered: float | None = None

    def recipe(self, text: Path) -> dict[str, Any]:
        """What its YAML file says."""
        pieces = self.trained["updates"] * self.trained["batch"]
        lessons = {"text": str(text), "chunks": pieces + pieces // 15 + 1, "tokens": TOKENS}
        train = {"step": "distill", **self.trained, "text": lessons}
        return {"calibration": CALIBRATION, "steps": [self.taken, train]}


_LAYERS = {"step": "remove", "units": "layers", "count": 6}
CASES = {
    "layers": Case("30 to 24 layers, all weights", _LAYERS, {"updates": 200, "batch": 4, "learning_rate": 2e-4}, 0.6),
}


def text_file() -> Path:
    """The docstrings, in a file that carries their hash."""
    text = "\n\n".join(documents())
    path = KEPT / f"docstrings-{hashlib.sha256(text.encode()).hexdigest()[:16]}.txt"
    if not path.is_file():
        path.write_text(text, encoding="utf-8")
    return path


def run(case: Case, recipe: dict[str, Any], model: Path, work: Path) -> dict[str, Any]:
    """Compress, or go on with it. work: a directory of the case's own, which is removed at the end."""
    work.mkdir(exist_ok=True)
    file, out = work / "recipe.yaml", work / "out"
    file.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    command = [PACKLIGHT, "compress", str(model), "--recipe", str(file), "-o", str(out), "--threads", "2", "--json"]
    done = subprocess.run([*command, "--resume"], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}")
    before, after = json.loads(done.stdout)["steps"]
    shutil.rmtree(work)
    keys = ("mean_kl", "perplexity_ratio", "same_top1")
    return {
        "n_params": after["n_params"], "minutes": after["seconds"] / 60, "notes": after["notes"],
        "tokens": case.trained["updates"] * case.trained["batch"] * TOKENS,
        "before": {key: before[key] for key in keys}, "after": {key: after[key] for key in keys},
        "recovered": 1 - after["mean_kl"] / before["mean_kl"],
    }  # fmt: skip


def holds(name: str, found: dict[str, Any]) -> bool:
    """Whether as much came back as has to."""
    least = CASES[name].recovered
    return least is None or found["recovered"] >= least


def table(content: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| recipe | parameters, M | tokens learned from, thousands | minutes | mean KL before | after "
        "| came back (limit) | same top-1 before | after |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, one in content["cases"].items():
        least = CASES[name].recovered
        share = f"{one['recovered']:.0%}" + (f" (≥ {least:.0%})" if least is not None else "")
        before, after = one["before"], one["after"]
        lines.append(
            f"| {CASES[name].what} | {one['n_params'] / 1e6:.1f} | {one['tokens'] / 1e3:.0f} | {one['minutes']:.0f} "
            f"| {before['mean_kl']:.4f} | {after['mean_kl']:.4f} | {record.judged(share, holds(name, one))} "
            f"| {before['same_top1']:.1%} | {after['same_top1']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is not there yet, print the table, write the result; exit status 1 where a limit does not hold."""
    names = chosen("training_recipes", __doc__.splitlines()[0], CASES)
    model = offgrid(smollm2())
    content: dict[str, Any] = record.provenance()
    KEPT.mkdir(parents=True, exist_ok=True)
    text = text_file()
    recipes = {name: CASES[name].recipe(text) for name in names}
    content["cases"] = finished(
        KEPT, content["code_sha256"], recipes, lambda name, work: run(CASES[name], recipes[name], model, work)
    )
    record.save("training_recipes", content)
    print(table(content))
    sys.exit(not all(holds(name, one) for name, one in content["cases"].items()))


if __name__ == "__main__":
    main()
