"""Measure an artifact on this machine: all that a device needs of packlight is this package and an engine.

    python -m runtime ARTIFACT [--context N] [--threads N] [--no-mmap] [--trials N] [--turns N] [--fill-context]
                               [--sustained DURATION] [--max-memory SIZE] [--json]

Exit status 0; 1 where it does not fit or the engine fails, 2 for a mistake in the input.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from runtime.artifact import open_artifact
from runtime.atomic import json_text
from runtime.budget import Budget, judge
from runtime.check import check
from runtime.errors import PacklightError, said_of
from runtime.measure import measure
from runtime.measurement import RunOptions, Trials
from runtime.units import format_bytes, parse_bytes, parse_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.artifact import Artifact
    from runtime.check import CapVerdict
    from runtime.measurement import Measurement

INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """An error is one line, as everywhere in packlight."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; try {self.prog} --help\n")


def _program() -> list[str]:
    """How this was started: as a package, or as the one file that `packlight harness` writes."""
    name = Path(sys.argv[0]).name
    return ["python3", name] if name.endswith(".pyz") else ["python", "-m", "runtime"]


def parser() -> argparse.ArgumentParser:
    """The options; the defaults are those of `packlight measure`."""
    built = _Parser(prog=shlex.join(_program()), description="Measure an artifact on this machine.")
    built.add_argument("artifact", type=Path, metavar="ARTIFACT", help="an exported directory, or a .gguf file")
    built.add_argument("--context", type=int, default=RunOptions.context, metavar="N", help="tokens of context")
    built.add_argument("--threads", type=int, metavar="N", help="compute threads; default: the cores, at most 4")
    built.add_argument("--no-mmap", action="store_true", help="read the weights, do not map them")
    built.add_argument("--turns", type=int, default=Trials.turns, metavar="N", help="turns of the conversation")
    built.add_argument("--fill-context", action="store_true", help="fill the context to its last token")
    built.add_argument("--sustained", metavar="DURATION", help="a load that goes on for so long, for example 5min")
    built.add_argument("--trials", type=int, default=Trials.count, metavar="N", help="trials after one warm-up")
    built.add_argument("--max-memory", metavar="SIZE", help="run under a hard cap of this size, for example 300MB")
    built.add_argument("--json", action="store_true", help="print the measurement (with --max-memory the verdict)")
    return built


def lines(artifact: Artifact, measurement: Measurement) -> list[str]:
    """The figures as plain text, one a line."""
    shown = [f"{line.name:<23} {line.text}" for line in judge(artifact.total_bytes, measurement, Budget())]
    if (split := measurement.memory) is not None:
        cache = [] if measurement.of_encoder else [("KV cache", split.kv_cache_bytes)]
        parts = (
            ("weights", split.weights_bytes),
            *cache,
            ("compute", split.compute_bytes),
            ("rest", split.other_bytes),
        )
        shown.append(f"{'memory':<23} " + ", ".join(f"{name} {format_bytes(size)}" for name, size in parts))
    if (kinds := measurement.resident) is not None:
        share = kinds.proportional_bytes
        backed = (("anonymous", kinds.anonymous_bytes), ("of files", kinds.file_bytes), ("shared", kinds.shared_bytes))
        peak = kinds.peak_proportional_bytes
        named = (*backed, *([] if share is None else [("PSS", share)]))
        named += () if peak is None else (("highest PSS seen", peak),)
        shown.append(f"{'at the end':<23} " + ", ".join(f"{name} {format_bytes(size)}" for name, size in named))
    shown.append(f"{'host':<23} " + ", ".join(str(measurement.host[key]) for key in ("cpu", "os", "engine")))
    return shown + [f"{'note':<23} {note}" for note in measurement.notes]


def run(args: argparse.Namespace, command: str) -> int:
    """Measure or check, print what was found and give the exit status. Raises PacklightError."""
    cap_bytes = None if args.max_memory is None else parse_bytes(args.max_memory)
    artifact = open_artifact(args.artifact)
    options = RunOptions(threads=args.threads, context=args.context, mmap=not args.no_mmap)
    sustained_s = 0.0 if args.sustained is None else parse_seconds(args.sustained)
    trials = Trials(count=args.trials, turns=args.turns, fill_context=args.fill_context, sustained_s=sustained_s)
    measurement: Measurement | None
    verdict: CapVerdict | None = None
    if cap_bytes is None:
        measurement = measure(artifact, options, trials, command=command)
    else:
        verdict = check(artifact, options, trials, cap_bytes, command=command)
        measurement = verdict.measurement
    if args.json:
        found = verdict or measurement
        text = json_text(found.to_json() if found else None)
    else:
        text = "\n".join(
            (lines(artifact, measurement) if measurement else []) + ([verdict.text] if verdict is not None else [])
        )
    sys.stdout.write(text + "\n")
    return 0 if verdict is None or verdict.fits else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv`, run, and give the exit status; an error is one line on stderr."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(given)
    try:
        return run(args, shlex.join([*_program(), *given]))
    except PacklightError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    except OSError as error:
        sys.stderr.write(f"error: {said_of(error)}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
