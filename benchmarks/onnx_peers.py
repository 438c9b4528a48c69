"""Our ONNX exports against what users build today: ORT-GenAI's builder for decoders, quantize_dynamic for encoders.

    python -m benchmarks.onnx_peers [--runs 5 | --quick] [--resume] [--parts decoder encoder greedy sizes]

Off-grid SmolLM2 and MiniLM. Every figure is of a process of its own on two processors, taken in turn, medians over the
runs; benchmarks.onnx_runs and benchmarks.onnx_encoders are these processes, the same for both sides. What is built
lies in .cache/onnx-peers afterwards; with --resume, what an interrupted run has measured there is not measured again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from benchmarks import record
from benchmarks.models import minilm, offgrid
from benchmarks.onnx_encoders import PEERS as ENCODER_PEERS
from benchmarks.onnx_judge import failures, pairs, sizes_of
from benchmarks.onnx_runs import THREADS, median_of, write_prompt
from benchmarks.onnx_tables import table
from benchmarks.paths import CACHE, ROOT
from benchmarks.smollm2 import smollm2
from benchmarks.spawn import run

if TYPE_CHECKING:
    from collections.abc import Callable

WORK = CACHE / "onnx-peers"
PARTS = ("decoder", "encoder", "greedy", "sizes")
CHUNKS, TRIALS, TOKENS = 8, 3, 64
TEXTS = {"evaluation": "drift", "calibration": "drift_second"}
"""Parts of the built-in text that drift is measured on. Where our presets have 8 bits was chosen with an eye on both,
on this model: neither is unseen. No weight-only road, ours or theirs, reads either for an export."""
BUILD_RUNS = 3
"""Builds vary less than speeds and take longer: so many runs of them at most."""
ENCODER_PRESETS = ("dynamic-int8", "static-int8", "int8", "int4", "fp16", "fp32")
SIZED = {
    "SmolLM2-135M": ("int4", "int4-mixed", "int8", "fp16", "fp32"),
    "all-MiniLM-L6-v2": ENCODER_PRESETS,
}
PROMPTS = (
    "What is the capital of France?", "Write a haiku about the sea.", "Explain gravity to a child.",
    "List three fruits and their colours.", "How do I boil an egg?", "Translate 'good morning' into Spanish.",
    "Write a Python function that adds two numbers.", "Why is the sky blue?", "Who wrote Romeo and Juliet?",
    "Give me a short story about a dog and a robot.",
)  # fmt: skip


@dataclass(frozen=True)
class Road:
    """One way to an ONNX decoder.

    name: in the table; options: our preset, or what the builder is told; once: built and measured in the first run only
    """

    name: str
    ours: bool
    options: tuple[str, ...]
    engines: tuple[str, ...] = ("plain", "genai")
    once: bool = False

    def command(self, model: Path, out: Path) -> list[str]:
        """The command that writes the directory `out`."""
        if self.ours:
            return ours_command(model, self.options[0], out)
        precision, *extra = self.options
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", model.name, "-i", str(model)]
        builder += ["-o", str(out), "-p", precision, "-e", "cpu", "-c", str(WORK / "builder-cache")]
        return [*builder, "--extra_options", *extra] if extra else builder


EVERY = ("plain", "genai", "harness")
ROADS = (
    Road("GenAI int4", False, ("int4",)),
    Road("packlight int4", True, ("int4",), EVERY),
    Road("GenAI k_quant_mixed", False, ("int4", "algo_config=k_quant_mixed")),
    Road("packlight int4-mixed", True, ("int4-mixed",), EVERY),
    Road("GenAI int4, prune_lm_head", False, ("int4", "prune_lm_head=true"), once=True),
    Road("GenAI int8", False, ("int8",), once=True),
    Road("packlight int8", True, ("int8",), EVERY, once=True),
)
"""onnxruntime-genai 0.18 ignores `int4_algo_config=`, whatever its help says; `algo_config=` works."""
PRUNED = "GenAI int4, prune_lm_head"
"""Logits of the last position only, which the builder does when told: no drift to measure, the weights are int4's."""


def ours_command(model: Path, quant: str, out: Path) -> list[str]:
    """The command line of our export, verification and measuring off."""
    packlight = str(Path(sys.executable).with_name("packlight"))
    named = ["--format", "onnx", "--quant", quant, "-o", str(out), "--overwrite"]
    return [packlight, "export", str(model), *named, "--no-verify", "--no-measure"]


def kept(key: str, compute: Callable[[], Any]) -> Any:  # noqa: ANN401 - JSON
    """What `compute` returned for `key` since WORK was cleared; a failure is told, returned as a row and not kept."""
    path = WORK / "done" / f"{key}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    try:
        found = compute()
    except RuntimeError as error:
        print(f"{key}: {error}", file=sys.stderr, flush=True)
        return {"error": str(error).strip().splitlines()[-1][:300]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found), encoding="utf-8")
    print(f"{key}: {json.dumps(found)[:200]}", file=sys.stderr, flush=True)
    return found


def child(module: str, task: str, **keywords: Any) -> Any:  # noqa: ANN401 - JSON
    """What a task of a module of child processes returns. Raises RuntimeError with its last lines."""
    out = WORK / "answer.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{module}", task, str(out), json.dumps(keywords)]
    cost = run(command, THREADS, {**os.environ, "PYTHONPATH": str(ROOT)})
    answer = json.loads(out.read_text(encoding="utf-8"))
    return {**answer, "cost": asdict(cost)} if isinstance(answer, dict) else answer


def build(command: list[str], out: Path) -> dict[str, Any]:
    """Run a command that writes `out`; what it cost, and the bytes of graph and weights."""
    shutil.rmtree(out, ignore_errors=True)
    return {**asdict(run(command, THREADS)), "model_bytes": model_bytes(out)}


def model_bytes(directory: Path) -> int:
    """Bytes of the graphs and of their external data, without tokenizer and configuration."""
    named = (path for path in directory.rglob("*") if ".onnx" in path.name and path.is_file())
    return sum(path.stat().st_size for path in named)


def slug(name: str) -> str:
    """A name of the table as that of a file."""
    return name.replace(", ", "-").replace(" ", "-")


def decoders(runs: int) -> list[dict[str, Any]]:
    """One row a road: builds, drift, speed and peak in every engine."""
    model = offgrid(smollm2())
    write_prompt(model)
    out = {road.name: WORK / slug(road.name) for road in ROADS}
    builds: dict[str, list[dict[str, Any]]] = {road.name: [] for road in ROADS}
    measured: dict[tuple[str, str], list[dict[str, Any]]] = {(r.name, e): [] for r in ROADS for e in r.engines}
    for number, road in _turns(min(runs, BUILD_RUNS)):
        command = road.command(model, out[road.name])
        key = f"build-{slug(road.name)}-{number}"
        builds[road.name].append(kept(key, partial(build, command, out[road.name])))
    # Theirs and ours directly after each other in one engine: these are compared.
    for number, road, engine in ((n, r, e) for n in range(runs) for e in EVERY for r in ROADS):
        if engine in road.engines and not (road.once and number):
            keywords = {"directory": str(out[road.name]), "trials": TRIALS}
            key = f"{engine}-{slug(road.name)}-{number}"
            measured[road.name, engine].append(kept(key, partial(child, "onnx_runs", engine, **keywords)))
    rows = []
    for road in ROADS:
        engines = {engine: summary(measured[road.name, engine]) for engine in road.engines}
        row = {"name": road.name, "ours": road.ours, "build": summary(builds[road.name]), "engines": engines}
        if road.name != PRUNED:
            for part in TEXTS:
                key = f"drift-{part}-{slug(road.name)}"
                row[TEXTS[part]] = kept(key, partial(_drift, model, out[road.name], part))
        rows.append({**row, "command": " ".join(road.command(Path("MODEL"), Path("OUT"))[1:])})
    return rows


def _turns(runs: int) -> list[tuple[int, Road]]:
    """Run by run, the roads in turn."""
    return [(number, road) for number in range(runs) for road in ROADS if not (road.once and number)]


def _drift(model: Path, directory: Path, part: str) -> dict[str, Any]:
    paths = {"source": str(model), "directory": str(directory), "kept": str(WORK / f"reference-{part}.npy")}
    return dict(child("onnx_runs", "drift", chunks=CHUNKS, text=part, **paths))


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the runs, and the runs; where one failed, its error alone."""
    failed = [one for one in runs if "error" in one]
    if failed:
        return failed[0]
    plain = [{key: value for key, value in one.items() if key != "cost"} for one in runs]
    return {**median_of(plain), "runs": plain}


def encoders(runs: int) -> list[dict[str, Any]]:
    """One row a peer and one a preset of ours: the build, cosines, latency, peak."""
    model = minilm()
    names = [*ENCODER_PEERS, *(f"packlight {preset}" for preset in ENCODER_PRESETS)]
    out = {name: WORK / slug(f"encoder {name}") for name in names}
    builds: dict[str, Any] = {}
    for name in names:
        builds[name] = kept(f"build-{out[name].name}", partial(_build_encoder, model, name, out[name]))
    latency: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(runs):
        for name in names:
            if "error" not in builds[name]:
                ask = {"directory": str(out[name])}
                key = f"latency-{out[name].name}-{number}"
                latency[name].append(kept(key, partial(child, "onnx_encoders", "latency", **ask)))
    rows = []
    for name in names:
        row = {"name": name, "ours": name.startswith("packlight"), "build": builds[name]}
        if "error" not in builds[name]:
            ask = {"source": str(model), "directory": str(out[name])}
            row["cosine"] = kept(f"cosine-{out[name].name}", partial(child, "onnx_encoders", "cosine", **ask))
            row["latency"] = summary(latency[name])
        rows.append(row)
    return rows


def _build_encoder(model: Path, name: str, out: Path) -> dict[str, Any]:
    if name not in ENCODER_PEERS:
        return build(ours_command(model, name.removeprefix("packlight "), out), out)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    done = child("onnx_encoders", "build", source=str(model), peer=name, directory=str(out))
    return {**done["cost"], "model_bytes": model_bytes(out)}


def greedy() -> Any:  # noqa: ANN401 - JSON
    """How many tokens of our fp32 export are transformers' own, prompt by prompt."""
    model, out = offgrid(smollm2()), WORK / slug("packlight fp32")
    built = kept("build-packlight-fp32", partial(build, ours_command(model, "fp32", out), out))
    if "error" in built:
        return built
    ask = {"source": str(model), "directory": str(out), "prompts": list(PROMPTS), "tokens": TOKENS}
    return kept("greedy", partial(child, "onnx_runs", "greedy", **ask))


def sizes() -> dict[str, dict[str, Any]]:
    """By model and preset: the graph's name, bytes of graph and weights, and of the whole directory."""
    found: dict[str, dict[str, Any]] = {}
    for name, presets in SIZED.items():
        found[name] = {}
        for preset in presets:
            decoder = name != "all-MiniLM-L6-v2"
            out = WORK / slug(f"packlight {preset}" if decoder else f"encoder packlight {preset}")
            if not out.is_dir():  # The other parts have not built it already.
                command = ours_command(offgrid(smollm2()) if decoder else minilm(), preset, out)
                built = kept(f"build-{out.name}", partial(build, command, out))
            found[name][preset] = sizes_of(out) if out.is_dir() else built
    return found


def alone(path: Path) -> TextIO:
    """A locked file, held until it is closed. Raises SystemExit where another run has it: both would write to WORK."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise SystemExit(f"{path}: another run measures here; wait until it has ended") from None
    return file


def main() -> None:
    """Run, print the table, write the result; exit status 1 where a limit does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.onnx_peers", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one run of each")
    parser.add_argument("--resume", action="store_true", help="keep what an interrupted run has measured")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="not all: printed and not saved")
    args = parser.parse_args()
    start, runs = time.monotonic(), 1 if args.quick else args.runs
    lock = alone(WORK.with_suffix(".lock"))
    if not args.resume:
        shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {**record.provenance(), "threads": THREADS, "n_runs": runs}
    content |= {"chunks": CHUNKS, "trials": TRIALS, "tokens": TOKENS, "resumed": args.resume}
    steps: dict[str, Callable[[], Any]] = {
        "decoder": partial(decoders, runs), "encoder": partial(encoders, runs), "greedy": greedy, "sizes": sizes,
    }  # fmt: skip
    for part in PARTS:
        if part in args.parts:
            content[part] = steps[part]()
    content["wall_s"] = round(time.monotonic() - start, 1)
    if set(args.parts) == set(PARTS):
        record.save("onnx_peers", content)
    lock.close()
    print(table(content))
    broken = failures(content)
    print("\n".join(broken) or f"every one of {len(pairs(content))} limits holds", file=sys.stderr)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
