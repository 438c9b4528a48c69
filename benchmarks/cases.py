"""Cases of a benchmark that take long: a finished one is kept in .cache and not run again."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from typing import TYPE_CHECKING, Any

from benchmarks import record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path


def chosen(name: str, description: str, cases: Iterable[str]) -> list[str]:
    """The cases that the command line asks for, all of them where it names none. name: of the benchmark"""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--only", nargs="+", choices=list(cases), default=list(cases))
    found: list[str] = parser.parse_args().only
    return found


def with_earlier(name: str, cases: Iterable[str], found: Mapping[str, Any]) -> dict[str, Any]:
    """`found`, and what the kept result of a benchmark has of cases that this run was not asked for, in their order."""
    earlier = record.load(name)
    known = {**(earlier["cases"] if earlier is not None else {}), **found}
    return {case: known[case] for case in cases if case in known}


def finished(
    kept: Path, code: str, recipes: Mapping[str, Any], run: Callable[[str, Path], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What each case gave, by name.

    kept: a directory; code: hash of the code that a case belongs to: other code makes it anew
    run: called with a case's name and the path, without suffix, that it is kept under
    """
    kept.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, recipe in recipes.items():
        key = json.dumps([code, recipe], sort_keys=True)
        path = kept / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if not path.is_file():
            path.write_text(json.dumps(run(name, path.with_suffix(""))), encoding="utf-8")
        found[name] = json.loads(path.read_text(encoding="utf-8"))
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found
